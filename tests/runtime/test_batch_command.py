"""`python -m runtime batch`: a line for a line, whatever happens in between."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

TEXT = "It was a bright cold day and the old house stood at the end of the lane in April".split()  # noqa: SIM905


def write_lines(path, lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def some_prompts(count):
    draw = random.Random(4)
    lengths = [draw.randint(1, 30) for _ in range(count)]
    return [{"id": f"p{n}", "prompt": " ".join(draw.choices(TEXT, k=length))} for n, length in enumerate(lengths)]


@pytest.fixture
def batch(cli_here, bundle, tmp_path):
    """The command over a file of these lines, its output out.jsonl."""

    def run(lines, *arguments, output="out.jsonl", **options):
        source = write_lines(tmp_path / "in.jsonl", lines)
        return cli_here(
            "batch", str(source), "--output", str(tmp_path / output), "--model", str(bundle), *arguments, **options
        )

    return run


def test_a_line_has_its_prompts_completion(batch, model, tmp_path):
    lines = some_prompts(40)
    done = batch(lines, "--max-new-tokens", "9", "--batch-size", "4")
    assert (done.returncode, done.stdout) == (0, "")
    assert "40 of 40 lines completed, 0 bad" in done.stderr
    for line, record in zip(lines, read_lines(tmp_path / "out.jsonl"), strict=True):
        alone = model.complete(line["prompt"], max_new_tokens=9)
        assert len(record.pop("digest")) == 16
        assert record == {
            "id": line["id"],
            "text": alone.text,
            "token_ids": list(alone.token_ids),
            "finish_reason": alone.finish_reason,
            "prompt_tokens": alone.prompt_tokens,
        }


def test_pytorchs_tokens_come_out(batch, probes, tmp_path):
    batch([{"prompt": probe.prompt} for probe in probes], "--max-new-tokens", "20")
    records = read_lines(tmp_path / "out.jsonl")
    assert [tuple(record["token_ids"]) for record in records] == [probe.token_ids[:20] for probe in probes]


def test_ids_of_any_kind_are_kept_and_a_line_without_one_has_its_number(batch, tmp_path):
    ids = ["a", 7, None, {"user": 1}, [1, 2], "a", 1.5, "ü"]
    lines = [{"id": name, "prompt": "It was"} for name in ids]
    batch(["", *lines, {"prompt": "It was"}, "  ", {"prompt": "It was"}], "--max-new-tokens", "1")
    assert [record["id"] for record in read_lines(tmp_path / "out.jsonl")] == [*ids, 10, 12]


def test_a_lines_own_options_win(batch, model, tmp_path):
    lines = [
        {"prompt": "It was"},
        {"prompt": "It was", "max_new_tokens": 3},
        {"prompt": "It was", "temperature": 0.9, "seed": 5},
        {"prompt": "It was", "seed": None, "stop": ["the"], "logprobs": 1},
    ]
    done = batch(lines, "--max-new-tokens", "12", "--seed", "2")
    assert done.returncode == 0
    expected = [
        model.complete("It was", max_new_tokens=12, seed=2),
        model.complete("It was", max_new_tokens=3, seed=2),
        model.complete("It was", max_new_tokens=12, temperature=0.9, seed=5),
        model.complete("It was", max_new_tokens=12, stop=["the"], logprobs=1),
    ]
    records = read_lines(tmp_path / "out.jsonl")
    assert [tuple(record["token_ids"]) for record in records] == [completion.token_ids for completion in expected]
    assert ["logprobs" in record for record in records] == [False, False, False, True]
    assert records[3]["logprobs"][0]["token_id"] == records[3]["token_ids"][0]


BAD = [
    ("{", "not JSON"),
    ("[]", '"prompt"'),
    ("17", '"prompt"'),
    ('{"id": "x"}', '"prompt"'),
    ('{"id": "x", "prompt": 5}', "prompt must be a string, got int"),
    ('{"id": "x", "prompt": null}', "prompt must be a string, got NoneType"),
    ('{"id": "x", "prompt": "\\ud800"}', "lone surrogate"),
    ('{"id": "x", "prompt": "a", "temprature": 1}', "'temprature'"),
    ('{"id": "x", "prompt": "a", "top_p": 2}', "top_p must be a number from 0 to 1, got 2"),
    ('{"id": "x", "prompt": "a", "max_new_tokens": 1.5}', "max_new_tokens must be an integer"),
    ('{"id": "x", "prompt": "a", "logprobs": 1000000}', "logprobs must be at most"),
    ('{"id": "x", "prompt": "' + "a b " * 2000 + '"}', "prompt must be at most"),
    ("[" * 100_000, "not JSON"),
    ('{"id": NaN, "prompt": "a"}', "NaN is not a JSON value"),
    ('{"id": 1e999, "prompt": "a"}', "1e999 is too large"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=[message for _, message in BAD])
def test_a_bad_line_is_named_and_the_others_are_completed(batch, tmp_path, line, message):
    done = batch([{"prompt": "It was"}, line, {"id": "last", "prompt": "She"}], "--max-new-tokens", "2")
    assert done.returncode == 1
    reported, summary = done.stderr.splitlines()
    assert reported.startswith("gpt2-onnx: line 2: ")
    assert message in reported
    assert "2 of 3 lines completed, 1 bad" in summary
    good, bad, last = read_lines(tmp_path / "out.jsonl")
    assert (good["id"], last["id"]) == (1, "last")
    assert bad.keys() == {"id", "line", "error", "digest"}
    assert (bad["line"], bad["id"]) == (2, "x" if '"x", ' in line else 2)
    assert message in bad["error"]


def test_a_line_that_is_no_utf8(cli_here, bundle, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b'{"prompt": "It was"}\n{"prompt": "caf\xe9"}\n')
    done = cli_here("batch", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "o"), "--model", str(bundle))
    assert done.returncode == 1
    assert "line 2: not UTF-8" in done.stderr


def test_nothing_in_is_nothing_out(batch, tmp_path):
    assert batch([]).returncode == 0
    assert (tmp_path / "out.jsonl").read_text() == ""


def test_standard_input_is_read(batch, bundle, cli_here, tmp_path):
    lines = some_prompts(5)
    batch(lines, "--max-new-tokens", "3")
    stdin = "".join(json.dumps(line) + "\n" for line in lines).encode()
    output = tmp_path / "other.jsonl"
    done = cli_here("batch", "-", "--output", str(output), "--model", str(bundle), "--max-new-tokens", "3", stdin=stdin)
    assert done.returncode == 0
    assert output.read_bytes() == (tmp_path / "out.jsonl").read_bytes()


# going on


LINES = [*some_prompts(12), '{"id": "bad"', *some_prompts(4)]
OPTIONS = ("--max-new-tokens", "6", "--batch-size", "3", "--temperature", "0.9", "--seed", "1")


@pytest.fixture
def whole(batch, tmp_path):
    """The output of a run that nothing stopped."""
    assert batch(LINES, *OPTIONS, output="whole.jsonl").returncode == 1
    return (tmp_path / "whole.jsonl").read_bytes()


def test_a_run_goes_on_from_any_byte(batch, whole, tmp_path):
    """A kill leaves some first bytes of the output, in the middle of a line as well as at its end."""
    ends = [n + 1 for n, byte in enumerate(whole) if byte == ord("\n")]
    cuts = {0, 1, 5, 9, len(whole) - 1, len(whole), *ends, *(end - 1 for end in ends), *(end + 3 for end in ends[:-1])}
    for cut in sorted(cuts):
        (tmp_path / "out.jsonl").write_bytes(whole[:cut])
        done = batch(LINES, *OPTIONS)
        assert done.returncode == 1, "the bad line counts, whichever run has met it"
        assert (tmp_path / "out.jsonl").read_bytes() == whole, cut
        assert {file.name for file in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl", "whole.jsonl"}


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(batch, bundle, tmp_path):
    """By SIGKILL, at random moments from the first record on."""
    if not hasattr(signal, "SIGKILL"):
        pytest.skip("there is no SIGKILL here")
    lines, output = LINES * 12, tmp_path / "out.jsonl"
    batch(lines, *OPTIONS, output="whole.jsonl")
    command = ["batch", str(tmp_path / "in.jsonl"), "--output", str(output), "--model", str(bundle), *OPTIONS]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    draw, kills = random.Random(1), 0
    for _ in range(len(lines) + 1):  # each run adds a record
        size = output.stat().st_size if output.exists() else 0
        process = subprocess.Popen(
            [sys.executable, "-m", "runtime", *command], stderr=subprocess.DEVNULL, env=environment
        )
        while process.poll() is None and (not output.exists() or output.stat().st_size <= size):
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        if process.wait() >= 0:
            break
        kills += 1
    assert kills >= 2
    assert process.returncode == 1
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_finished_run_is_left_as_it_is(batch, whole, tmp_path):
    (tmp_path / "out.jsonl").write_bytes(whole)
    before = (tmp_path / "out.jsonl").stat().st_mtime_ns
    done = batch(LINES, *OPTIONS)
    assert "17 by an earlier run" in done.stderr
    assert (tmp_path / "out.jsonl").stat().st_mtime_ns == before


def test_more_lines_are_added_to_a_finished_run(batch, whole, tmp_path):
    (tmp_path / "out.jsonl").write_bytes(whole)
    batch([*LINES, {"id": "new", "prompt": "She"}], *OPTIONS)
    assert (tmp_path / "out.jsonl").read_bytes().startswith(whole)
    assert read_lines(tmp_path / "out.jsonl")[-1]["id"] == "new"


def test_force_begins_again(batch, tmp_path):
    batch([{"id": "old", "prompt": "She"}])
    assert batch([{"id": "new", "prompt": "He"}], "--force", "--max-new-tokens", "2").returncode == 0
    assert [record["id"] for record in read_lines(tmp_path / "out.jsonl")] == ["new"]


# refusals


def refused(done, *parts):
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    for part in parts:
        assert part in done.stderr


A, B = {"id": "a", "prompt": "She"}, {"id": "b", "prompt": "He"}


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        ([A, {"id": "c", "prompt": "He"}], 2),
        ([{"id": "a", "prompt": "It"}, B], 1),
        ([{**A, "top_k": 2}, B], 1),
        ([A], 2),
        ([A, '{"id": "b"}'], 2),
        ([B, A], 1),
    ],
    ids=["another id", "another prompt", "other options", "fewer lines", "a bad line", "another order"],
)
def test_an_output_of_another_input_is_refused_and_kept(batch, tmp_path, lines, line):
    batch([A, B])
    before = (tmp_path / "out.jsonl").read_bytes()
    refused(batch(lines), f"line {line} of ", "out.jsonl", "--force")
    assert (tmp_path / "out.jsonl").read_bytes() == before


@pytest.mark.parametrize("options", [(), ("--max-new-tokens", "5"), ("--max-new-tokens", "3", "--top-k", "2")], ids=str)
def test_an_output_of_other_options_is_refused_and_kept(batch, tmp_path, options):
    """Finished or not: what is there was made otherwise."""
    batch([A], "--max-new-tokens", "3")
    before = (tmp_path / "out.jsonl").read_bytes()
    refused(batch([A, B], *options), "other options", "--force")
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_an_output_of_another_model_is_refused_and_kept(batch, bundle_copy, cli_here, tmp_path):
    batch([A])
    before = (tmp_path / "out.jsonl").read_bytes()
    with bundle_copy.changed_manifest() as manifest:
        manifest["source"]["weights_sha256"] = "0" * 64
    model, output = str(bundle_copy.folder), str(tmp_path / "out.jsonl")
    refused(cli_here("batch", str(tmp_path / "in.jsonl"), "--output", output, "--model", model), "another model")
    assert (tmp_path / "out.jsonl").read_bytes() == before


FOREIGN = [
    "precious",
    "precious\n",
    '{"a": 1}\n',
    '{"id": 1\n',
    '{"id": 1, "text": "a"}\nx',
    '{"id": "run", "config": {}}',
]


@pytest.mark.parametrize("content", FOREIGN)
@pytest.mark.parametrize("options", [(), ("--force",)], ids=["going on", "force"])
def test_a_file_that_is_no_output_is_refused_and_kept(batch, tmp_path, content, options):
    (tmp_path / "out.jsonl").write_text(content)
    refused(batch([A, B], *options), "out.jsonl", "--output")
    assert (tmp_path / "out.jsonl").read_text() == content


def test_the_input_is_refused_as_output(batch, tmp_path):
    refused(batch([A], output="in.jsonl"), "in.jsonl", "--output")
    assert read_lines(tmp_path / "in.jsonl") == [A]


def test_standard_inputs_file_is_refused_as_output(bundle, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [A])
    command = [sys.executable, "-m", "runtime", "batch", "-", "--output", str(source), "--model", str(bundle)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with source.open("rb") as stdin:
        done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, env=environment, check=False)
    refused(done, "in.jsonl", "--output")
    assert read_lines(source) == [A]


@pytest.mark.parametrize("output", ["-", "/dev/null", "."])
def test_what_cannot_be_read_back_is_refused_as_output(cli_here, bundle, tmp_path, output):
    source = write_lines(tmp_path / "in.jsonl", [A])
    refused(cli_here("batch", str(source), "--output", output, "--model", str(bundle)), "--output", output)


def test_a_byte_order_mark_and_carriage_returns_are_no_part_of_a_line(cli_here, bundle, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "It was"}\r\n\r\n{"prompt": "She"}\r\n')
    output = tmp_path / "out.jsonl"
    done = cli_here("batch", str(tmp_path / "in.jsonl"), "--output", str(output), "--model", str(bundle))
    assert (done.returncode, [record["id"] for record in read_lines(output)]) == (0, [1, 3])


def test_an_empty_line_with_a_byte_order_mark_is_empty(cli_here, bundle, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b'\xef\xbb\xbf\r\n{"prompt": "It was", "max_new_tokens": 1}\r\n')
    output = tmp_path / "out.jsonl"
    done = cli_here("batch", str(tmp_path / "in.jsonl"), "--output", str(output), "--model", str(bundle))
    assert (done.returncode, [record["id"] for record in read_lines(output)]) == (0, [2])


def test_two_runs_on_one_output_are_refused(batch, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / "out.jsonl").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        refused(batch([{"prompt": "She"}]), "out.jsonl", "another process")
    assert batch([{"prompt": "She"}], "--max-new-tokens", "1").returncode == 0


def test_bad_options_are_refused_before_anything_is_written(batch, tmp_path):
    refused(batch([{"prompt": "She"}], "--top-p", "3"), "top_p", "3")
    refused(batch([{"prompt": "She"}], "--batch-size", "0"), "batch_size", "0")
    assert not (tmp_path / "out.jsonl").exists()


def test_files_that_are_not_there(batch, cli_here, bundle, tmp_path):
    done = cli_here("batch", str(tmp_path / "no.jsonl"), "--output", str(tmp_path / "o"), "--model", str(bundle))
    assert (done.returncode, "no.jsonl" in done.stderr) == (1, True)
    done = batch([{"prompt": "She"}], output="no/out.jsonl")
    assert (done.returncode, "no/out.jsonl" in done.stderr) == (1, True)

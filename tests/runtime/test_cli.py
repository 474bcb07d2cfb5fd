"""`python -m runtime` as a user meets it: what is on each stream, and the exit code."""

import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from fakes import SERVED

import runtime
from runtime.cli.main import main
from runtime.graphs.kinds import runs

WEIGHTS = "onnx/model.onnx_data"


def assert_fails(done, code, *parts):
    """This exit code, nothing on standard output, and one line on standard error that has these parts."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


# complete


def test_complete_prints_the_continuation_alone(cli, bundle, probe, vocabulary):
    done = cli("complete", probe.prompt, "--model", str(bundle), "--max-new-tokens", "12")
    expected = vocabulary.decode(list(probe.token_ids[:12]))
    assert (done.returncode, done.stdout, done.stderr) == (0, expected + "\n", "")


def test_complete_as_json_tells_everything(cli, bundle, probe, vocabulary):
    done = cli("complete", probe.prompt, "--model", str(bundle), "--max-new-tokens", "12", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {
        "text": vocabulary.decode(list(probe.token_ids[:12])),
        "token_ids": list(probe.token_ids[:12]),
        "finish_reason": "length",
        "prompt_tokens": len(probe.prompt_ids),
    }


def test_every_option_that_a_command_line_can_have_is_a_flag(cli, model, bundle, probe):
    flags = {
        "--min-new-tokens": ["2"],
        "--logit-bias": ["11=-5", "12=3.5"],
        "--presence-penalty": ["0.5"],
        "--frequency-penalty": ["-0.5"],
        "--bad-words": ["the", "and"],
        "--eos-token-id": ["13", "14"],
        "--prompt-logprobs": ["1"],
    }
    options = {
        "min_new_tokens": 2,
        "logit_bias": {11: -5, 12: 3.5},
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "bad_words": ["the", "and"],
        "eos_token_id": [13, 14],
        "prompt_logprobs": 1,
    }
    given = [part for flag, values in flags.items() for value in values for part in (flag, value)]
    done = cli("complete", probe.prompt, "--model", str(bundle), "--json", *given)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(json.dumps(model.complete(probe.prompt, **options).as_dict()))


@pytest.mark.parametrize("bias", ["11", "11=", "=3", "x=3", "11=x", "-1=3", "1.5=3"])
def test_a_bias_that_is_none_is_refused_with_an_example(cli, bundle, bias):
    done = cli("complete", "It was", "--model", str(bundle), f"--logit-bias={bias}")
    assert_fails(done, 2, "--logit-bias", "ID=BIAS", repr(bias))


@pytest.mark.parametrize(
    ("stdin", "prompt"),
    [
        ("{}", "{}"),
        ("{}\n", "{}"),
        ("{}\n\n", "{}\n"),
        ("{}\r\n", "{}"),
        ("{}\r\n\r\n", "{}\r\n"),
        ("{}\n\r\n", "{}\n"),
        ("{}\r\r\n", "{}\r"),
        ("{}\r", "{}\r"),
        ("\ufeff{}\r\n", "{}"),
    ],
    ids=repr,
)
def test_complete_reads_standard_input_less_one_line_end(cli_here, model, bundle, probe, stdin, prompt):
    prompt = prompt.format(probe.prompt)
    options = ["--model", str(bundle), "--max-new-tokens", "4", "--json"]
    completion = json.loads(cli_here("complete", "-", *options, stdin=stdin.format(probe.prompt).encode()).stdout)
    expected = model.complete(prompt, max_new_tokens=4)
    assert (completion["prompt_tokens"], completion["text"]) == (expected.prompt_tokens, expected.text)


def test_complete_reads_standard_input_as_utf8_whatever_the_locale(cli, model, bundle):
    prompt = "“Très bien,” said he — 😀"
    locale = {"PYTHONIOENCODING": "latin-1:replace", "LC_ALL": "C", "PYTHONUTF8": "0"}
    options = ["--model", str(bundle), "--max-new-tokens", "1", "--json"]
    done = cli("complete", "-", *options, stdin=prompt.encode(), env=locale)
    assert done.returncode == 0
    assert json.loads(done.stdout)["prompt_tokens"] == model.complete(prompt, max_new_tokens=1).prompt_tokens


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_json_can_be_read_whatever_standard_output_can_carry(monkeypatch, encoding):
    """Where it is no terminal, Windows gives it the code page of the machine."""
    text, stdout = "— 😀 “\ufffd”", io.BytesIO()
    model = SimpleNamespace(complete=lambda *_, **__: runtime.Completion(text, (1,), "length", 1))
    monkeypatch.setattr("runtime.api.kept_model", lambda *_, **__: model)
    monkeypatch.setattr(sys, "argv", ["gpt2-onnx", "complete", "x", "--json"])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stdout, encoding=encoding))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert json.loads(stdout.getvalue())["text"] == text


def test_complete_finds_the_model_in_the_environment(cli, bundle, probe, vocabulary):
    done = cli("complete", probe.prompt, "--max-new-tokens", "4", env={"GPT2_ONNX_MODEL": str(bundle)})
    assert done.stdout == vocabulary.decode(list(probe.token_ids[:4])) + "\n"


def test_complete_takes_a_prompt_that_looks_like_an_option_behind_two_dashes(cli_here, bundle):
    done = cli_here("complete", "--model", str(bundle), "--max-new-tokens", "1", "--", "--json")
    assert done.returncode == 0
    assert not done.stdout.startswith("{")


def test_a_reader_who_goes_away_is_no_error_to_talk_about(bundle, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "runtime", "complete", "It", "--model", str(bundle), "--max-new-tokens", "1"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=tmp_path, timeout=300, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


# wrong usage: 2


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["COMMAND"]),
        (["compleat", "x"], ["compleat", "complete", "verify"]),
        (["complete"], ["PROMPT"]),
        (["complete", "x", "--beams", "1"], ["--beams"]),
        (["complete", "x", "y"], ["y"]),
        (["complete", "x", "--max-new-tokens", "many"], ["--max-new-tokens", "many"]),
        (["complete", "x", "--max-new-tokens", "1.5"], ["--max-new-tokens", "1.5"]),
        (["complete", "x", "--max-new-tokens"], ["--max-new-tokens"]),
        (["verify", "--deep"], ["--deep"]),
        (["complete", "x", "first\nsecond"], ["first"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_that_cannot_be_parsed(cli_here, arguments, parts):
    assert_fails(cli_here(*arguments), 2, "gpt2-onnx", "--help", *parts)


def test_an_unknown_option_in_a_process_of_its_own(cli):
    assert_fails(cli("complete", "x", "--beams", "1"), 2, "gpt2-onnx", "--beams")


def test_max_new_tokens_out_of_their_range(cli, bundle):
    done = cli("complete", "x", "--model", str(bundle), "--max-new-tokens", "0")
    assert_fails(done, 2, "max_new_tokens", "at least 1", "0")


def test_a_device_that_does_not_exist(cli_here, bundle):
    done = cli_here("complete", "x", "--model", str(bundle), "--device", "gpu")
    assert_fails(done, 2, "device", "'auto', 'cpu', 'cuda' or 'cuda:N'", "'gpu'")


def test_a_prompt_longer_than_the_context(cli_here, bundle, context):
    prompt = "<|endoftext|>" * (context + 3)
    done = cli_here("complete", "-", "--model", str(bundle), stdin=prompt.encode())
    assert_fails(done, 2, "prompt", f"{context - 1:,}", f"{context + 3:,}")


def test_standard_input_that_is_no_utf8(cli, bundle):
    done = cli("complete", "-", "--model", str(bundle), stdin=b"It was \xff\xfe")
    assert_fails(done, 2, "standard input", "UTF-8", "byte 7")


@pytest.mark.skipif(os.name == "nt", reason="arguments are text there")
def test_an_argument_that_is_no_utf8(cli, bundle):
    assert_fails(cli("complete", b"a\xff", "--model", str(bundle)), 2, "prompt", "position 1")


# a bad bundle: 1


@pytest.mark.parametrize("command", [["complete", "x"], ["verify"]], ids=["complete", "verify"])
def test_no_model_anywhere(cli, command):
    assert_fails(cli(*command), 1, "models", "gpt2", "python -m export")


@pytest.mark.parametrize("command", [["complete", "x"], ["verify"]], ids=["complete", "verify"])
@pytest.mark.parametrize("name", ["nothing", "~nobody-of-this-name", "x" * 5000, "first\nsecond"], ids=lambda n: n[:9])
def test_a_model_that_is_not_there(cli_here, command, name):
    assert_fails(cli_here(*command, "--model", name), 1, name[:5])


def test_a_bundle_with_a_changed_byte(cli, bundle_copy):
    bundle_copy.flip_byte(WEIGHTS)
    done = cli("complete", "x", "--model", str(bundle_copy.folder))
    assert_fails(done, 1, "model.onnx_data", "SHA-256")


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08\x09"], ids=["empty", "text", "no graph in it"])
def test_a_graph_that_onnx_runtime_cannot_load(cli_here, bundle_copy, content):
    bundle_copy.replace(SERVED, content)
    assert_fails(cli_here("complete", "x", "--model", str(bundle_copy.folder)), 1, SERVED)


# verify


def verify_fails(done, *parts):
    """Exit code 1, no traceback, and a last line on standard error that has these parts."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("gpt2-onnx: ")
    for part in parts:
        assert part in last


def test_verify_passes_what_was_exported(cli, bundle, manifest):
    done = cli("verify", "--model", str(bundle))
    tokens = sum(len(probe["token_ids"]) for probe in manifest["parity"]["greedy"]["probes"])
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1
    assert f"{bundle} is verified" in done.stdout
    assert f"{len(manifest['files'])} files" in done.stdout
    assert f"{tokens} of {tokens} greedy tokens" in done.stdout
    for name in manifest["files"]:
        assert name in done.stderr


def errors(graph):
    return {name: graph[name] for name in ("error", "allowed")}


def test_verify_as_json_can_be_parsed(cli, bundle_copy, manifest):
    with bundle_copy.changed_manifest() as changed:
        changed["parity"]["greedy"]["probes"] = changed["parity"]["greedy"]["probes"][:1]
    done = cli("verify", "--model", str(bundle_copy.folder), "--json")
    tokens = len(manifest["parity"]["greedy"]["probes"][0]["token_ids"])
    assert done.returncode == 0
    found = json.loads(done.stdout)
    caches = [graph for graph in found["graphs"] if graph["graph"] == "int8_cache"]
    found["graphs"] = [graph for graph in found["graphs"] if graph not in caches]
    assert [graph["precision"] for graph in caches] == (["fp32"] if runs("int8_cache") else [])
    assert all(0.5 < graph["error"] <= graph["allowed"] == 2 for graph in caches)
    noted = len(manifest["parity"]["likelihoods"]["logprobs"][0])
    layers = sum(map(len, manifest["parity"]["lens"]["logprobs"]))
    expected = [
        ("decode", "fp32", tokens),
        ("decode", "fp16", tokens),
        ("reference", "fp32", noted),
        ("lens", "fp32", layers),
    ]
    assert found == {
        "model": str(bundle_copy.folder),
        "passed": True,
        "files": len(manifest["files"]),
        "parity": True,
        "signed_by": None,
        "device": "cpu",
        "runs_on": found["runs_on"],
        "wrong_products": [],
        "graphs": [
            {"graph": kind, "precision": precision, "tokens": count, "replayed": count, **errors(graph)}
            for (kind, precision, count), graph in zip(expected, found["graphs"], strict=True)
        ],
    }
    assert found["runs_on"].startswith("cpu (")
    for graph in found["graphs"]:
        pytorch = manifest["parity"]["lens" if graph["graph"] == "lens" else "likelihoods"]["pytorch_errors"]
        assert 0 < graph["error"] <= graph["allowed"] == max(2 * pytorch[graph["precision"]], 2e-5)


def test_verify_fails_on_a_changed_byte(cli, bundle_copy):
    bundle_copy.flip_byte(WEIGHTS)
    done = cli("verify", "--model", str(bundle_copy.folder))
    verify_fails(done, "model.onnx_data", "SHA-256")
    assert done.stdout == ""


def test_verify_fails_on_a_token_that_is_not_pytorchs(cli, bundle_copy, manifest):
    tokens = [len(probe["token_ids"]) for probe in manifest["parity"]["greedy"]["probes"][:2]]
    with bundle_copy.changed_manifest() as changed:
        del changed["parity"]["greedy"]["probes"][2:]
        changed["parity"]["greedy"]["probes"][0]["token_ids"][10] += 1
    done = cli("verify", "--model", str(bundle_copy.folder), "--json")
    findings = json.loads(done.stdout)
    assert done.returncode == 1
    assert findings["passed"] is False
    graph = findings["graphs"][0]
    assert (graph["replayed"], graph["tokens"]) == (sum(tokens) - tokens[0] + 10, sum(tokens))


def test_verify_says_so_in_words_too(cli_here, bundle_copy):
    with bundle_copy.changed_manifest() as changed:
        del changed["parity"]["greedy"]["probes"][1:]
        changed["parity"]["greedy"]["probes"][0]["prompt_ids"].reverse()
    done = cli_here("verify", "--model", str(bundle_copy.folder))
    assert done.returncode == 1
    assert "NOT verified" in done.stdout


def test_verify_fails_on_a_bundle_that_did_not_pass(cli_here, bundle_copy):
    with bundle_copy.changed_manifest() as changed:
        changed["parity"]["passed"] = False
        del changed["parity"]["greedy"]["probes"][1:]
    done = cli_here("verify", "--model", str(bundle_copy.folder), "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["passed"] is False


def test_verify_fails_where_nothing_is_left_to_replay(cli_here, bundle_copy):
    with bundle_copy.changed_manifest() as changed:
        changed["parity"]["greedy"]["probes"] = []
    assert cli_here("verify", "--model", str(bundle_copy.folder)).returncode == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt_ids", []),
        ("prompt_ids", [10**6]),
        ("prompt_ids", "text"),
        ("prompt_ids", [1] * 5000),
        ("token_ids", 3),
    ],
    ids=["empty", "out of the vocabulary", "text", "beyond the context", "number"],
)
def test_verify_fails_on_a_probe_that_cannot_be_replayed(cli_here, bundle_copy, name, value):
    with bundle_copy.changed_manifest() as changed:
        changed["parity"]["greedy"]["probes"] = [changed["parity"]["greedy"]["probes"][0] | {name: value}]
    verify_fails(cli_here("verify", "--model", str(bundle_copy.folder)), "manifest.json")


@pytest.mark.parametrize("parity", [{"greedy": None}, {"greedy": {"probes": 3}}, {"greedy": {"probes": [{}]}}], ids=str)
def test_verify_fails_on_a_parity_report_of_another_shape(cli_here, bundle_copy, parity):
    with bundle_copy.changed_manifest() as changed:
        changed["parity"] |= parity
    verify_fails(cli_here("verify", "--model", str(bundle_copy.folder)), "manifest.json")


# everything else


def test_the_version_is_the_packages(cli):
    done = cli("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"gpt2-onnx {runtime.__version__}\n", "")


@pytest.mark.parametrize("arguments", [["--help"], ["complete", "--help"], ["verify", "--help"]], ids=" ".join)
def test_help_is_on_standard_output(cli_here, arguments):
    done = cli_here(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: gpt2-onnx")

"""`python -m runtime inspect`: a table, JSON, and what it refuses before it loads anything."""

import errno
import io
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import runtime
from runtime.cli.inspect_report import aligned, quoted
from runtime.inside.page import make_page

TEXT = "The old house stood at the end of the"


@pytest.fixture
def inspect(cli_here, bundle):
    return lambda *arguments, **options: cli_here("inspect", *arguments, "--model", str(bundle), **options)


@pytest.fixture(scope="module")
def lens(model):
    return model.lens(TEXT)


def test_it_prints_what_each_layer_finds_likeliest(inspect, lens, manifest):
    done = inspect(TEXT)
    assert (done.returncode, done.stderr) == (0, "")
    sizes, last = manifest["architecture"], len(lens.tokens) - 1
    lines = done.stdout.splitlines()
    assert lines[0] == f"{last + 1} tokens: {' '.join(map(repr, lens.tokens))}"
    assert f"attentions     [{sizes['n_layer']}, {sizes['n_head']}, {last + 1}, {last + 1}]" in lines
    table = lines[9:]
    assert [line.split()[0] for line in table] == ["embedding", *map(str, range(1, sizes["n_layer"])), "output"]
    for layer, line in enumerate(table):
        best = lens.next_tokens(layer, last)[0]
        assert int(line.split()[1].replace(",", "")) == lens.ranks[layer, last]
        assert f" {best.text!r} {best.probability:.1%}" in line
    answer = lens.next_tokens(sizes["n_layer"], last)[0].text
    assert f"after {lens.tokens[last]!r}, and the rank of {answer!r} in it:" in done.stdout


def test_columns_are_aligned_by_a_terminals_cells():
    rows = [["layer", "rank"], ["output", "1", "'a' 9.1%", "'bc' 1.0%"], ["5", "1,204", "' house' 11.9%", "'x' 0.1%"]]
    assert list(aligned(rows)) == [
        "layer    rank",
        "output      1  'a' 9.1%        'bc' 1.0%",
        "5       1,204  ' house' 11.9%  'x' 0.1%",
    ]
    wide = [["1", "1", "'の' 1%", "a"], ["2", "2", "'e\u0301' 1%", "b"], ["3", "3", "'abc'", "c"]]
    assert list(aligned(wide)) == ["1  1  'の' 1%  a", "2  2  'e\u0301' 1%   b", "3  3  'abc'    c"]


@pytest.mark.parametrize(
    ("piece", "shown"), [(" a", "' a'"), ("\n", r"'\n'"), (r"\xf0", r"'\xf0'"), ("\x9b", r"'\u009b'"), ("é", "'é'")]
)
def test_a_piece_is_quoted_and_bytes_are_not_escaped_again(piece, shown):
    assert quoted(piece) == shown


def test_a_long_text_shows_its_last_tokens(inspect, model):
    text = TEXT + TEXT + TEXT
    count = len(model.encode(text))
    first = inspect(text).stdout.splitlines()[0]
    assert first.startswith(f"{count} tokens: … {count - 12} more … ")
    assert first.endswith("' end' ' of' ' the'")


def test_json_tells_everything_of_the_lens(inspect, lens):
    found = json.loads(inspect(TEXT, "--json", "--top", "2").stdout)
    assert (tuple(found["tokens"]), tuple(found["token_ids"])) == (lens.tokens, lens.token_ids)
    ids = [[[token["token_id"] for token in place["next_tokens"]] for place in layer] for layer in found["layers"]]
    assert np.array_equal(ids, lens.top_ids[..., :2])
    answers = [[place["answer"] for place in layer] for layer in found["layers"]]
    known = {"token_id": lens.answers, "rank": lens.ranks, "probability": lens.answer_probabilities}
    for name, expected in known.items():
        assert np.array_equal(
            np.array([[each[name] for each in row] for row in answers], expected.dtype), expected + 0 * lens.ranks
        )
    assert [each["text"] for each in answers[0]] == [lens.pieces.piece(token) for token in lens.answers.tolist()]
    assert "attention" not in found


def test_json_holds_the_chosen_map(inspect, model):
    found = json.loads(inspect(TEXT, "--json", "--layer", "3", "--head", "2").stdout)["attention"]
    assert (found["layer"], found["head"]) == (3, 2)
    weights = np.array(found["weights"], np.float32)
    assert np.array_equal(weights, model.inspect(TEXT, layers=3).attention(3, 2))


def test_standard_input_is_a_text(inspect, lens):
    done = inspect("-", stdin=f"{TEXT}\n".encode())
    assert done.stdout.startswith(f"{len(lens.tokens)} tokens: 'The' ' old'")


def test_control_characters_do_not_reach_the_terminal(inspect):
    done = inspect("\x1b[31mred\x07\x9b")
    assert not {"\x1b", "\x07", "\x9b"} & set(done.stdout)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--layer", "1"], ["--layer and --head", "both"]),
        (["--head", "1", "--output", "head.png"], ["--layer and --head", "both"]),
        (["--layer", "1", "--head", "0"], ["--output head.png"]),
        (["--lens"], ["--output lens.png"]),
        (["--lens", "--layer", "1", "--head", "0", "--output", "x.png"], ["--lens", "leave out"]),
        (["--output", "head.jpeg"], ["--output", ".png or .svg or .pdf", "head.jpeg"]),
        (["--html", "page.txt"], ["--html", ".html", "page.txt"]),
        (["--html", "nowhere/page.html"], ["--html", "nowhere/page.html", "mkdir -p nowhere"]),
        (["--json", "--layer", "6", "--head", "0"], ["--layer", "at least 0 and at most 5", "got 6"]),
        (["--json", "--layer", "0", "--head", "-1"], ["--head", "at least 0 and at most 3", "got -1"]),
        (["--top", "0"], ["--top must be", "at least 1 and at most 8,192", "got 0"]),
        (["--top", "9000", "--json"], ["--top must be", "at most 8,192", "got 9000"]),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_one_line(inspect, tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    done = inspect(TEXT, *arguments)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert all(part in done.stderr for part in parts), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_text_over_the_context_is_refused(inspect, context):
    done = inspect("x " * 2 * context)
    assert done.returncode == 2
    assert f"text must be at most {context} tokens, the context, got" in done.stderr


@pytest.fixture
def pictures(model, lens):
    """What each choice draws, as PNG."""
    pytest.importorskip("matplotlib", reason="pictures need the extra `plot`")
    seen = model.inspect(TEXT)
    return {
        "one head": (["--layer", "3", "--head", "2"], seen.plot_attention(3, 2)),
        "all heads": ([], seen.plot_overview()),
        "the lens": (["--lens"], lens.plot()),
    }


@pytest.mark.parametrize("which", ["one head", "all heads", "the lens"])
def test_a_picture_is_written(inspect, tmp_path, pictures, which):
    (arguments, figure), path, expected = pictures[which], tmp_path / "picture.png", io.BytesIO()
    figure.savefig(expected, format="png")
    done = inspect(TEXT, *arguments, "--output", str(path))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"gpt2-onnx: {path}, {path.stat().st_size / 1e6:.2f} MB\n"
    assert path.read_bytes() == expected.getvalue()
    assert list(tmp_path.iterdir()) == [path]


def test_a_page_is_written(inspect, tmp_path, model, lens):
    path = tmp_path / "page.html"
    path.write_text("an older one")
    done = inspect(TEXT, "--html", str(path))
    assert (done.returncode, done.stdout) == (0, "")
    assert path.read_text(encoding="utf-8") == make_page(model.inspect(TEXT), lens, model="novelist")
    assert list(tmp_path.iterdir()) == [path]


def test_everything_at_once_is_computed_once(inspect, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="pictures need the extra `plot`")
    calls = []
    for name in ("inspect", "lens"):
        method = getattr(runtime.Model, name)
        monkeypatch.setattr(
            runtime.Model,
            name,
            lambda *given, _name=name, _do=method, **named: (calls.append(_name), _do(*given, **named))[1],
        )
    outputs = ["--output", str(tmp_path / "a.png"), "--html", str(tmp_path / "a.html"), "--json"]
    assert inspect(TEXT, "--layer", "1", "--head", "0", *outputs).returncode == 0
    assert sorted(calls) == ["inspect", "lens"]
    assert len(list(tmp_path.iterdir())) == 2


def test_what_cannot_be_written_leaves_what_was_there(inspect, tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("an older one")

    def full(self, *_, **__):
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    done = inspect(TEXT, "--html", str(path))
    assert (done.returncode, done.stderr) == (1, f"gpt2-onnx: {path}: No space left on device\n")
    assert path.read_text() == "an older one"
    assert list(tmp_path.iterdir()) == [path]


def test_progress_is_of_the_layers(inspect, monkeypatch, manifest):
    done = []

    @contextmanager
    def bar(*_):
        yield SimpleNamespace(update=done.append)

    monkeypatch.setattr("runtime.cli.inspect.progress_bar", bar)
    inspect(TEXT)
    assert sum(done) == manifest["architecture"]["n_layer"] + 1


@pytest.mark.skipif(os.name != "posix", reason="closes a descriptor by the shell")
@pytest.mark.parametrize("command", ["summary", "verify"])
def test_a_closed_standard_output_takes_nothing_away(bundle, command):
    line = f'"$1" -m runtime {command} --model "$2" >&-'
    done = subprocess.run(
        ["sh", "-c", line, "sh", sys.executable, bundle], stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 0
    assert "Error" not in done.stderr

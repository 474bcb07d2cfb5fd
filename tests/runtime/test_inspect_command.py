"""`python -m runtime inspect`: a table, JSON, and what it refuses before it loads anything."""

import json

import numpy as np
import pytest

from runtime.cli.inside import aligned

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
    assert [line.split()[0] for line in table] == ["output", *map(str, range(sizes["n_layer"] - 1, 0, -1)), "embedding"]
    for line, layer in zip(table, range(sizes["n_layer"], -1, -1), strict=True):
        best = lens.next_tokens(layer, last)[0]
        assert int(line.split()[1].replace(",", "")) == lens.ranks[layer, last]
        assert f" {best.text!r} {best.probability:.1%}" in line


def test_columns_are_aligned():
    rows = [["layer", "rank"], ["output", "1", "'a' 9.1%", "'bc' 1.0%"], ["5", "1,204", "' house' 11.9%", "'x' 0.1%"]]
    assert list(aligned(rows)) == [
        "layer    rank",
        "output      1  'a' 9.1%        'bc' 1.0%",
        "5       1,204  ' house' 11.9%  'x' 0.1%",
    ]


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
    ranks = [[place["answer_rank"] for place in layer] for layer in found["layers"]]
    assert np.array_equal(ranks, lens.ranks)
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
        (["--top", "0"], ["k must be", "at least 1", "got 0"]),
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


@pytest.mark.parametrize(
    "arguments", [["--layer", "0", "--head", "1"], [], ["--lens"]], ids=["one head", "all heads", "lens"]
)
def test_a_picture_is_written(inspect, tmp_path, arguments):
    pytest.importorskip("matplotlib", reason="pictures need the extra `plot`")
    path = tmp_path / "picture.png"
    done = inspect(TEXT, *arguments, "--output", str(path))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith(f"gpt2-onnx: {path}, ")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_page_is_written(inspect, tmp_path):
    path = tmp_path / "page.html"
    done = inspect(TEXT, "--html", str(path))
    assert (done.returncode, done.stdout) == (0, "")
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")

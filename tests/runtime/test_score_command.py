"""`python -m runtime score` and the generating flags of `complete`."""

import json
import math
import sys

import pytest

from runtime.cli.complete import show

NOVEL = "It was a bright cold day in April, and the clocks were striking thirteen. " * 60


@pytest.fixture
def score(cli_here, bundle, tmp_path):
    def run(text, *arguments):
        (tmp_path / "text.txt").write_bytes(text.encode() if isinstance(text, str) else text)
        return cli_here("score", str(tmp_path / "text.txt"), "--model", str(bundle), *arguments)

    return run


def test_score_prints_the_perplexity(score, model, context):
    done = score(NOVEL)
    scored = model.score(NOVEL)
    assert (done.returncode, done.stderr) == (0, "")
    words = f"perplexity {scored.perplexity:.4f} over {scored.scored_tokens:,} tokens "
    assert done.stdout == f"{words}(context {context}, stride {context // 2})\n"


def test_score_as_json_tells_everything(score, model, context, tmp_path):
    done = score(NOVEL, "--stride", "100", "--json")
    found = json.loads(done.stdout)
    scored = model.score(NOVEL, stride=100)
    assert math.isclose(found.pop("perplexity"), scored.perplexity, rel_tol=1e-9)
    assert found.pop("seconds") > 0
    assert found == {
        "file": str(tmp_path / "text.txt"),
        "tokens": len(scored.token_ids),
        "scored_tokens": len(scored.token_ids) - 1,
        "context": context,
        "stride": 100,
    }


def test_score_reads_standard_input(cli_here, bundle, model):
    done = cli_here("score", "-", "--model", str(bundle), stdin=NOVEL.encode())
    assert f"perplexity {model.score(NOVEL).perplexity:.4f} " in done.stdout


@pytest.mark.parametrize(
    ("text", "arguments", "code", "parts"),
    [
        (NOVEL, ["--stride", "0"], 2, ["stride", "at least 1", "0"]),
        (NOVEL, ["--stride", "100000"], 2, ["stride", "at most", "100000"]),
        ("", [], 2, ["at least 2 tokens", "0"]),
        ("a", [], 2, ["at least 2 tokens", "1"]),
        (b"caf\xe9", [], 2, ["UTF-8", "text.txt", "byte 3"]),
    ],
    ids=["stride 0", "stride over the context", "nothing", "one token", "latin-1"],
)
def test_score_refuses_in_one_line(score, text, arguments, code, parts):
    done = score(text, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert len(done.stderr.splitlines()) == 1
    for part in parts:
        assert part in done.stderr


def test_score_counts_no_byte_order_mark(score):
    assert score(b"\xef\xbb\xbf" + NOVEL.encode()).stdout == score(NOVEL).stdout


def test_score_of_a_file_that_is_not_there(cli_here, bundle):
    done = cli_here("score", "nowhere.txt", "--model", str(bundle))
    assert (done.returncode, done.stdout) == (1, "")
    assert "nowhere.txt" in done.stderr


# complete


FLAGS = [
    ([], {}),
    (["--temperature", "0.9", "--top-k", "40", "--top-p", "0.9", "--min-p", "0.01", "--seed", "3"],
     {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "seed": 3}),
    (["--repetition-penalty", "1.3"], {"repetition_penalty": 1.3}),
    (["--stop", "the", "--stop", ","], {"stop": ["the", ","]}),
    (["--ignore-eos"], {"ignore_eos": True}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "options"), FLAGS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_complete_hands_its_flags_on(cli_here, bundle, model, flags, options):
    done = cli_here("complete", "It was", "--model", str(bundle), "--max-new-tokens", "20", *flags)
    expected = model.complete("It was", max_new_tokens=20, **options)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected.text + "\n", "")


def test_complete_gives_log_probabilities_in_json(cli_here, bundle, model):
    done = cli_here("complete", "It was", "--model", str(bundle), "--max-new-tokens", "2", "--logprobs", "2", "--json")
    expected = model.complete("It was", max_new_tokens=2, logprobs=2).logprobs
    found = json.loads(done.stdout)["logprobs"]
    assert [entry["token_id"] for entry in found] == [entry.token_id for entry in expected]
    assert [[tuple(best) for best in entry["top"]] for entry in found] == [list(entry.top) for entry in expected]


def test_complete_has_no_place_for_log_probabilities_in_text(cli_here, bundle):
    done = cli_here("complete", "It was", "--model", str(bundle), "--logprobs", "2")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--json" in done.stderr


def test_complete_shows_text_while_it_comes(monkeypatch):
    """Each piece is flushed before the next is asked for."""
    events = []

    class Output:
        def write(self, text):
            events.append(text)

        def flush(self):
            events.append("flush")

    def pieces():
        for piece in ("a", "b"):
            events.append(f"asked for {piece}")
            yield piece

    monkeypatch.setattr(sys, "stdout", Output())
    show(pieces())
    assert events[:6] == ["asked for a", "a", "flush", "asked for b", "b", "flush"]

"""What a text looks like inside: shapes, causality, pieces of text, what may be chosen, and bad input."""

import sys
from textwrap import dedent

import numpy as np
import pytest

import runtime
import runtime.graphs.reference
from runtime.errors import BundleError

TEXT = "The old house stood at the end of the lane, and"


@pytest.fixture(scope="module")
def seen(model):
    return model.inspect(TEXT)


@pytest.fixture(scope="module")
def sizes(manifest):
    return manifest["architecture"]


def test_everything_has_its_shape(seen, sizes):
    tokens, layers, heads = len(seen.token_ids), sizes["n_layer"], sizes["n_head"]
    assert seen.logits.shape == (tokens, sizes["vocab_size"])
    assert seen.hidden_states.shape == (layers + 1, tokens, sizes["n_embd"])
    assert seen.attentions.shape == (layers, heads, tokens, tokens)
    assert seen.layers == tuple(range(layers))


def test_it_is_shown_by_its_shapes(seen, model, sizes):
    tokens = len(seen.token_ids)
    shapes = [
        f"logits {[tokens, sizes['vocab_size']]}",
        f"hidden_states {[sizes['n_layer'] + 1, tokens, sizes['n_embd']]}",
        f"attentions {[sizes['n_layer'], sizes['n_head'], tokens, tokens]}",
    ]
    assert repr(seen) == f"<Inspection of {tokens} tokens: {', '.join(shapes)}>"
    assert repr(model.inspect(TEXT, outputs="logits")) == f"<Inspection of {tokens} tokens: {shapes[0]}>"


def test_rows_of_attention_sum_to_one_and_look_back_alone(seen):
    assert np.abs(seen.attentions.sum(-1) - 1).max() < 1e-6
    assert not np.triu(seen.attentions, 1).any()


def test_there_is_a_piece_of_text_for_each_id(seen, model):
    assert len(seen.tokens) == len(seen.token_ids)
    assert "".join(seen.tokens) == TEXT
    assert list(seen.token_ids) == model.encode(TEXT)


def test_bytes_that_make_no_character_are_written_as_such(model):
    seen = model.inspect("a🙂b")
    rest = [piece for piece in seen.tokens if piece not in ("a", "b")]
    assert "".join(rest) in (r"\xf0\x9f\x99\x82", "🙂")
    assert all(piece.isascii() or piece == "🙂" for piece in rest)


def test_every_id_has_a_piece_and_those_of_whole_characters_are_their_text(model, sizes):
    pieces = model.prompting.tokenizer
    for token in range(sizes["vocab_size"]):
        text = model.decode([token])
        if "\N{REPLACEMENT CHARACTER}" not in text:
            assert pieces.piece(token) == text


def test_the_likeliest_next_token_is_the_one_that_is_generated(seen, model):
    first, *others = seen.next_tokens(4)
    assert first.token_id == model.complete(TEXT, max_new_tokens=1).token_ids[0]
    assert first.text == model.decode([first.token_id])
    assert [each.probability for each in others] == sorted((each.probability for each in others), reverse=True)
    (logprob,) = model.complete(TEXT, max_new_tokens=1, logprobs=0).logprobs
    assert first.probability == pytest.approx(np.exp(logprob.logprob), rel=1e-4)


def test_all_probabilities_sum_to_one(seen, sizes):
    assert sum(each.probability for each in seen.next_tokens(sizes["vocab_size"])) == pytest.approx(1)


def test_a_batch_gives_what_each_text_gives(model):
    texts = ["He", TEXT, ""]
    for one, text in zip(model.inspect(texts), texts, strict=True):
        alone = model.inspect(text)
        assert one.tokens == alone.tokens
        for name in ("logits", "hidden_states", "attentions"):
            assert np.array_equal(getattr(one, name), getattr(alone, name))
    assert model.inspect([]) == []


def test_what_is_asked_for_alone_comes(seen, model):
    some = model.inspect(TEXT, outputs=["attentions"], layers=[2, 0, 2])
    assert (some.logits.size, some.hidden_states.size, some.layers) == (0, 0, (2, 0))
    assert np.array_equal(some.attentions, seen.attentions[[2, 0]])
    assert np.array_equal(some.attention(0, 1), seen.attention(0, 1))
    states = model.inspect(TEXT, outputs="hidden_states")
    assert np.array_equal(states.hidden_states, seen.hidden_states)
    assert (states.attentions.size, states.layers) == (0, ())


def test_a_text_of_the_whole_context_is_seen(model, sizes):
    ids = (model.encode(TEXT) * sizes["n_positions"])[: sizes["n_positions"]]
    text = model.decode(ids)
    length = len(model.encode(text))
    assert sizes["n_positions"] - 2 <= length <= sizes["n_positions"]
    assert model.inspect(text, outputs=["logits"]).logits.shape[0] == length


def test_a_long_text_is_read_in_parts_and_gives_the_same(seen, model, sizes, monkeypatch):
    """Every run makes all maps: of at most three rows here."""
    tokens, lengths = len(seen.token_ids), []
    reference = model.inspector.reference()
    run = reference.run
    monkeypatch.setattr(runtime.graphs.reference, "MAPS_BYTES", 3 * 4 * sizes["n_layer"] * sizes["n_head"] * tokens)
    monkeypatch.setattr(reference, "run", lambda ids, **given: (lengths.append(ids.shape[1]), run(ids, **given))[1])
    parts = model.inspect(TEXT)
    assert lengths == [3] * (tokens // 3) + [tokens % 3] * (tokens % 3 > 0)
    for name in ("logits", "hidden_states", "attentions"):
        assert np.allclose(getattr(parts, name), getattr(seen, name), rtol=1e-4, atol=1e-4)
    assert np.abs(parts.attentions - seen.attentions).max() < 1e-6
    assert not np.triu(parts.attentions, 1).any()


@pytest.mark.parametrize(
    "layers",
    [{1, 2}, np.array([1, 2]), range(1, 3), iter([1, 2]), [np.int64(1), 2, 2]],
    ids=["set", "array", "range", "iterator", "list"],
)
def test_layers_and_outputs_are_any_that_can_be_gone_through(seen, model, layers):
    some = model.inspect(TEXT, outputs={"attentions"}, layers=layers)
    assert some.layers == (1, 2)
    assert np.array_equal(some.attentions, seen.attentions[[1, 2]])


@pytest.mark.parametrize(
    ("kind", "options", "parts"),
    [
        (ValueError, {"layers": [6]}, ["layers", "at most 5", "6"]),
        (ValueError, {"layers": -1}, ["layers", "at least 0", "-1"]),
        (ValueError, {"layers": []}, ["layers", "from 0 to 5", "none"]),
        (TypeError, {"layers": "12"}, ["layers", "integer", "'12'"]),
        (TypeError, {"layers": ["1"]}, ["layers", "integer", "'1'"]),
        (ValueError, {"outputs": "logit"}, ["outputs", "'hidden_states'", "'logit'"]),
        (ValueError, {"outputs": []}, ["outputs", "'attentions'", "none"]),
        (ValueError, {"outputs": ["logits", 3]}, ["outputs", "'logits'", "3"]),
    ],
    ids=str,
)
def test_what_cannot_be_chosen_is_refused(model, refusal, kind, options, parts):
    message = refusal(kind, model.inspect, TEXT, **options)
    assert all(part in message for part in parts)


def test_a_map_that_is_not_there_is_refused_with_the_range(seen, model, refusal, sizes):
    heads = sizes["n_head"]
    assert f"at most {heads - 1}, got {heads}" in refusal(ValueError, seen.attention, 0, heads)
    assert "(0, 1, 2, 3, 4, 5), got 6" in refusal(ValueError, seen.attention, 6, 0)
    assert "(none), got 0" in refusal(ValueError, model.inspect(TEXT, outputs="logits").attention, 0, 0)


def test_next_tokens_in_their_range_and_of_logits_alone(seen, model, refusal, sizes):
    for k in (0, sizes["vocab_size"] + 1):
        assert f"k must be an integer of at least 1 and at most {sizes['vocab_size']:,}, got {k}" == refusal(
            ValueError, seen.next_tokens, k
        )
    assert "needs logits" in refusal(ValueError, model.inspect(TEXT, outputs="attentions").next_tokens)


def test_texts_that_are_none_are_refused(model, refusal, sizes):
    assert "text must be a string" in refusal(TypeError, model.inspect, 3)
    assert "text[1] must be a string" in refusal(TypeError, model.inspect, ["a", None])
    message = refusal(ValueError, model.inspect, ["a", "x " * 2 * sizes["n_positions"]])
    assert message.startswith(f"text[1] must be at most {sizes['n_positions']} tokens, the context, got ")


def test_a_bundle_without_the_reference_graph_says_so(bundle_copy, refusal):
    with bundle_copy.changed_manifest() as changed:
        changed["graphs"] = [graph for graph in changed["graphs"] if graph["kind"] != "reference"]
    model = runtime.load(bundle_copy.folder, device="cpu")
    assert "no reference graph in fp32" in refusal(BundleError, model.inspect, TEXT)
    assert model.complete(TEXT, max_new_tokens=1).token_ids


def test_weights_that_no_load_has_hashed_are_hashed_first(bundle_copy, refusal):
    bundle_copy.flip_byte("onnx/model.onnx_data")
    model = runtime.load(bundle_copy.folder, device="cpu", precision="fp16")
    assert "model.onnx_data was changed" in refusal(BundleError, model.inspect, TEXT)


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of this process's memory")
@pytest.mark.parametrize("graph", ["reference", "lens"])
def test_the_weights_are_mapped_and_not_read_into_memory(run_python, bundle, manifest, graph):
    """A run over few tokens takes less than half of its weights as anonymous memory: of 28 MB, or the lens's 8."""
    code = """
        import re, sys
        import numpy as np
        from pathlib import Path
        from runtime.bundle.bundle import open_bundle
        from runtime.ort.install import load_onnxruntime
        from runtime.graphs.lens import LensGraph
        from runtime.graphs.reference import ReferenceGraph

        def anonymous():
            return 1024 * int(re.search("RssAnon: *\\t *(\\d+)", Path("/proc/self/status").read_text())[1])

        load_onnxruntime()
        opened = open_bundle(sys.argv[1], verify=False)
        before = anonymous()
        kind, sizes = sys.argv[2], opened.manifest.architecture
        made = {"reference": ReferenceGraph, "lens": LensGraph}[kind](opened.graph_path(kind), sizes, threads=1)
        if kind == "lens":
            made.logits(np.ones((1, sizes.n_embd), np.float32))
        else:
            made.run(np.ones((1, 4), np.int64), outputs=["logits"])
        print(anonymous() - before)
        """
    found = run_python("-c", dedent(code), str(bundle), graph)
    sizes = manifest["architecture"]
    lens = 4 * sizes["vocab_size"] * sizes["n_embd"]
    assert int(found.stdout) < {"reference": manifest["files"]["onnx/model.onnx_data"]["size"], "lens": lens}[graph] / 2

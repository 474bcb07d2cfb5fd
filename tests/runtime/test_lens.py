"""What each layer would have said: shapes, the last layer, ranks, probabilities, and bad input."""

import numpy as np
import pytest

import runtime
from runtime.errors import BundleError

TEXT = "The old house stood at the end of the lane, and"
K = 7


@pytest.fixture(scope="module")
def lens(model):
    return model.lens(TEXT, k=K)


@pytest.fixture(scope="module")
def logits(model):
    return model.inspect(TEXT, outputs="logits").logits.astype(np.float64)


@pytest.fixture(scope="module")
def sizes(manifest):
    return manifest["architecture"]


def test_everything_has_its_shape(lens, model, sizes):
    layers, positions = sizes["n_layer"] + 1, len(model.encode(TEXT))
    assert (lens.top_ids.shape, lens.probabilities.shape) == ((layers, positions, K),) * 2
    assert (lens.ranks.shape, lens.answer_probabilities.shape) == ((layers, positions),) * 2
    assert lens.answers.shape == (positions,)
    assert "".join(lens.tokens) == TEXT
    assert list(lens.token_ids) == model.encode(TEXT)


def test_it_is_shown_in_a_line(lens, sizes):
    layers, tokens = sizes["n_layer"] + 1, len(lens.tokens)
    assert repr(lens) == f"<Lens over {tokens} tokens: the {K} likeliest in each of {layers} layers>"


def test_the_last_layer_is_the_models_own_output(lens, logits):
    assert np.array_equal(lens.top_ids[-1], np.argsort(-logits, axis=1, kind="stable")[:, :K])
    assert np.array_equal(lens.answers, logits.argmax(axis=1))
    assert (lens.ranks[-1] == 1).all()
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    likely = exponentials / exponentials.sum(axis=1, keepdims=True)
    assert np.allclose(lens.probabilities[-1], np.take_along_axis(likely, lens.top_ids[-1], axis=1), rtol=1e-5, atol=0)
    assert np.array_equal(lens.answer_probabilities[-1], lens.probabilities[-1, :, 0])


def test_a_rank_counts_what_is_likelier(lens, model, sizes):
    everything = model.lens(TEXT, k=sizes["vocab_size"])
    assert np.allclose(everything.probabilities.sum(axis=-1), 1, atol=1e-5)
    assert (np.diff(everything.probabilities, axis=-1) <= 0).all()
    for layer, position in np.ndindex(everything.ranks.shape):
        answer = everything.answers[position]
        place = everything.top_ids[layer, position].tolist().index(answer)
        likelihood = everything.answer_probabilities[layer, position]
        assert everything.probabilities[layer, position, place] == likelihood
        assert everything.ranks[layer, position] == 1 + place
    assert np.array_equal(everything.ranks, lens.ranks)


def test_next_tokens_are_those_of_a_layer_and_a_position(lens, model):
    found = lens.next_tokens(2, 3)
    assert [each.token_id for each in found] == lens.top_ids[2, 3].tolist()
    assert [each.probability for each in found] == lens.probabilities[2, 3].tolist()
    assert [each.text for each in found] == [model.prompting.tokenizer.piece(each.token_id) for each in found]
    assert (
        lens.next_tokens(lens.ranks.shape[0] - 1, len(lens.tokens) - 1)[0].token_id
        == (model.complete(TEXT, max_new_tokens=1).token_ids[0])
    )


def test_a_batch_gives_what_each_text_gives(model):
    texts = ["He", TEXT, ""]
    for one, text in zip(model.lens(texts), texts, strict=True):
        alone = model.lens(text)
        assert one.tokens == alone.tokens
        for name in ("top_ids", "probabilities", "answers", "ranks", "answer_probabilities"):
            assert np.array_equal(getattr(one, name), getattr(alone, name))
    assert model.lens([]) == []


def test_a_long_text_is_read_in_parts_and_says_the_same(lens, model, monkeypatch):
    session = model.inspector.lens_graph()
    monkeypatch.setattr(session, "_most_rows", 4)
    parts = model.lens(TEXT, k=K)
    assert np.array_equal(parts.top_ids, lens.top_ids)
    assert np.array_equal(parts.ranks, lens.ranks)
    assert np.allclose(parts.probabilities, lens.probabilities, rtol=1e-4, atol=0)  # other blocks, other sums


def test_progress_counts_the_layers(model, sizes):
    done = []
    model.lens([TEXT, "He"], progress=done.append)
    assert sum(done) == 2 * (sizes["n_layer"] + 1)


def test_what_is_out_of_range_is_refused_with_the_range(lens, model, refusal, sizes):
    layers, positions = lens.ranks.shape
    assert f"layer must be an integer of at least 0 and at most {layers - 1}, got {layers}" == refusal(
        ValueError, lens.next_tokens, layers, 0
    )
    assert f"at most {positions - 1}, got -1" in refusal(ValueError, lens.next_tokens, 0, -1)
    assert f"at most {sizes['vocab_size']:,}, got 0" in refusal(ValueError, model.lens, TEXT, k=0)
    assert "k must be an integer" in refusal(TypeError, model.lens, TEXT, k="5")
    assert "text must be a string" in refusal(TypeError, model.lens, None)
    long = "x " * 2 * sizes["n_positions"]
    assert f"text must be at most {sizes['n_positions']} tokens" in refusal(ValueError, model.lens, long)


def test_a_bundle_without_the_lens_says_so(bundle_copy, refusal):
    with bundle_copy.changed_manifest() as changed:
        changed["graphs"] = [graph for graph in changed["graphs"] if graph["kind"] != "lens"]
    model = runtime.load(bundle_copy.folder, device="cpu")
    assert "no lens graph in fp32" in refusal(BundleError, model.lens, TEXT)
    assert model.inspect(TEXT).tokens


@pytest.mark.parametrize("kind", ["lens", "reference"])
def test_a_graph_that_is_another_is_the_bundles_fault(bundle_copy, refusal, kind):
    """Each for the other: both files are the manifest's."""
    with bundle_copy.changed_manifest() as changed:
        kinds = {"lens": "reference", "reference": "lens"}
        changed["graphs"] = [graph | {"kind": kinds.get(graph["kind"], graph["kind"])} for graph in changed["graphs"]]
    model = runtime.load(bundle_copy.folder, device="cpu")
    message = refusal(BundleError, getattr(model, "lens" if kind == "lens" else "inspect"), TEXT)
    assert f"is not a {kind} graph of its manifest's architecture" in message


def test_weights_are_hashed_once_for_both_graphs(bundle, monkeypatch):
    hashed = []
    monkeypatch.setattr("runtime.inside.inspector.check_hashes", lambda _, names: hashed.append(names))
    model = runtime.load(bundle, device="cpu", precision="fp16")
    assert hashed == []
    model.lens("He")
    model.inspect("He")
    assert hashed == [{"onnx/model.onnx_data"}]


def test_weights_that_no_load_has_hashed_are_hashed_first(bundle_copy, refusal):
    bundle_copy.flip_byte("onnx/model.onnx_data")
    model = runtime.load(bundle_copy.folder, device="cpu", precision="fp16")
    assert "model.onnx_data was changed" in refusal(BundleError, model.lens, TEXT)
    assert "model.onnx_data was changed" in refusal(BundleError, model.lens, TEXT)  # and not only once

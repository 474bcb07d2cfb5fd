"""Every output tensor of both graphs against PyTorch float64: the shipped checkpoint, every config field, full size."""

import numpy as np
import pytest

FIELDS = [
    *({"activation_function": name} for name in ("gelu_new", "gelu", "relu", "tanh", "silu")),
    *(
        {"activation_function": name}
        for name in ("gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python", "swish")
    ),
    {"n_inner": 40},
    {"layer_norm_epsilon": 1e-2},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True},
    {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
    {"tie_word_embeddings": False},
    {"n_head": 1},
    {"n_layer": 1, "n_head": 2, "n_embd": 80},
    {"n_positions": 33, "vocab_size": 8199},
]


@pytest.fixture(
    scope="module", params=["shipped", *FIELDS, pytest.param({"full": True}, marks=pytest.mark.slow)], ids=str
)
def pair(request, make_pair):
    if request.param == "shipped":
        return request.getfixturevalue("shipped")
    if "full" in request.param:  # GPT-2 small, seeded
        return make_pair(vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12)
    return make_pair(**request.param)


@pytest.mark.parametrize("length", [1, 2, 31])
def test_reference_graph_returns_what_pytorch_returns(pair, pytorch, names, length):
    ids = pair.text_ids(length)
    pair.assert_close(pair.reference.run(ids), names(pytorch(pair.truth, ids)), f"{length} tokens")


def test_reference_graph_goes_on_from_a_past(pair, pytorch, names):
    ids = pair.text_ids(24)
    for split in (23, 9):  # S = 1 and S > 1 with a past
        past = pair.reference.run(ids[:, :split])
        outputs = pair.reference.run(ids[:, split:], past=past)
        truth = pytorch(pair.truth, ids[:, split:], past=pytorch(pair.truth, ids[:, :split]).past_key_values)
        pair.assert_close(outputs, names(truth), f"{24 - split} tokens after {split}")


def test_reference_graph_takes_a_left_padded_batch(pair, pytorch, names):
    lengths, width = (20, 7, 13), 20
    ids, mask = np.zeros((3, width), np.int64), np.zeros((3, width), np.int64)
    for row, length in enumerate(lengths):
        ids[row, width - length :], mask[row, width - length :] = pair.text_ids(length)[0], 1
    outputs = pair.reference.run(ids, attention_mask=mask)
    pair.assert_close(outputs, names(pytorch(pair.truth, ids, mask)), "left-padded batch")


@pytest.mark.parametrize("lengths", [(1,), (31,), (30, 1), (1, 1, 1), (9, 14, 8)], ids=str)
def test_decode_graph_returns_what_pytorch_returns(pair, pytorch, names, lengths):
    ids = pair.text_ids(sum(lengths))
    with pair.decode.sequence() as sequence:
        for end, length in zip(np.cumsum(lengths), lengths, strict=True):
            token = sequence.advance(ids[0, end - length : end].tolist())
        outputs = {"logits": sequence.logits.copy(), **sequence.cache()}
        truth = {name: array for name, array in names(pytorch(pair.truth, ids)).items() if name in outputs}
        truth["logits"] = truth["logits"][0, -1]
        pair.assert_close(outputs, truth, f"chunks {lengths}")
        assert token == truth["logits"].argmax()


def test_both_graphs_share_one_weights_file(pair):
    onnx = pytest.importorskip("onnx")
    locations = {}
    for graph in ("model", "decode"):
        path = pair.bundle / "onnx" / f"{graph}.onnx"
        onnx.checker.check_model(str(path))
        model = onnx.load(path, load_external_data=False)
        locations[graph] = {
            tensor.name: {entry.key: entry.value for entry in tensor.external_data}
            for tensor in model.graph.initializer
            if tensor.external_data
        }
    assert locations["model"] == locations["decode"]
    assert {entry["location"] for entry in locations["model"].values()} == {"model.onnx_data"}
    parameters = sum(p.numel() for p in pair.float32.parameters())
    size = (pair.bundle / "onnx" / "model.onnx_data").stat().st_size
    assert 4 * parameters <= size <= 4 * parameters + 4096 * len(locations["model"])

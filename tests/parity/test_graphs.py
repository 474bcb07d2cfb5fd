"""Every output tensor of both graphs against PyTorch float64: the shipped checkpoint, every config field, full size."""

import shutil

import numpy as np
import pytest

from runtime.graphs.kinds import runs

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
    scope="module", params=["shipped", *FIELDS, pytest.param({"full": True}, marks=pytest.mark.wide)], ids=str
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


@pytest.mark.parametrize("lengths", [(1,) * 24, (9, 15), (20, 1, 3)], ids=["token by token", "9 and 15", "20, 1 and 3"])
def test_reference_graph_goes_on_from_a_past(pair, pytorch, names, lengths):
    """The chunks' outputs side by side are those of one run, for S = 1 and S > 1."""
    ids, past, parts = pair.text_ids(24), None, []
    for end, length in zip(np.cumsum(lengths), lengths, strict=True):
        past = pair.reference.run(ids[:, end - length : end], past=past)
        parts.append(past)
    outputs = dict(past)
    for name in outputs:
        if name == "logits" or name.startswith("hidden_states."):
            outputs[name] = np.concatenate([part[name] for part in parts], axis=1)
        elif name.startswith("attentions."):
            wide = [np.pad(part[name], [(0, 0)] * 3 + [(0, 24 - part[name].shape[3])]) for part in parts]
            outputs[name] = np.concatenate(wide, axis=2)
    pair.assert_close(outputs, names(pytorch(pair.truth, ids)), f"chunks {lengths}")


def test_reference_graph_takes_a_left_padded_batch(pair, pytorch, names):
    lengths, width = (20, 7, 13), 20
    ids, mask = np.zeros((3, width), np.int64), np.zeros((3, width), np.int64)
    for row, length in enumerate(lengths):
        ids[row, width - length :], mask[row, width - length :] = pair.text_ids(length)[0], 1
    outputs = pair.reference.run(ids, attention_mask=mask)
    pair.assert_close(outputs, names(pytorch(pair.truth, ids, mask)), "left-padded batch")


@pytest.fixture(scope="module", params=["ragged", "decode"])
def decode(request, pair):
    """Either of the decode graphs."""
    if not runs(request.param):
        pytest.skip("this ONNX Runtime has no query_seqlens")
    return pair.decode if request.param == "decode" else pair.ragged


def run_decode(decode, ids, lengths):
    """(next token, logits [1, 1, V] and cache) after feeding `ids` in chunks."""
    with decode.sequence() as sequence:
        for end, length in zip(np.cumsum(lengths), lengths, strict=True):
            token, logits = sequence.step(ids[0, end - length : end].tolist())
        cache = {name: array.copy() for name, array in sequence.cache().items()}
        return token, {"logits": logits[None, None].copy(), **cache}


def decode_truth(pair, pytorch, names, ids):
    """The last position's logits, and every key and value."""
    truth = names(pytorch(pair.truth, ids))
    return {
        "logits": truth["logits"][:, -1:],
        **{name: array for name, array in truth.items() if name.startswith("present.")},
    }


@pytest.mark.parametrize("lengths", [(1,), (31,), (30, 1), (1, 1, 1), (9, 14, 8)], ids=str)
def test_decode_graph_returns_what_pytorch_returns(pair, decode, pytorch, names, lengths):
    ids = pair.text_ids(sum(lengths))
    token, outputs = run_decode(decode, ids, lengths)
    truth = decode_truth(pair, pytorch, names, ids)
    pair.assert_close(outputs, truth, f"chunks {lengths}")
    assert token == truth["logits"].argmax()


def test_decode_graph_reaches_the_end_of_the_context(pair, decode, pytorch, names):
    context = pair.architecture.n_positions
    ids = pair.text_ids(context)
    token, outputs = run_decode(decode, ids, (context - 2, 1, 1))
    truth = decode_truth(pair, pytorch, names, ids)
    pair.assert_close(outputs, truth, "the whole context")
    assert token == truth["logits"].argmax()


def test_both_graphs_share_one_weights_file(pair, tmp_path):
    onnx = pytest.importorskip("onnx")
    locations = {}
    folder = shutil.copytree(pair.bundle / "onnx", tmp_path / "onnx")  # onnx checks no files that others link to
    for graph in ("model", "decode"):
        path = folder / f"{graph}.onnx"
        onnx.checker.check_model(str(path))
        model = onnx.load(path, load_external_data=False)
        locations[graph] = {
            tensor.name: {entry.key: entry.value for entry in tensor.external_data}
            for tensor in model.graph.initializer
            if tensor.external_data
        }
    own = {name: locations["decode"].pop(name) for name in list(locations["decode"]) if name.startswith("shortlist.")}
    assert {place["location"] for place in own.values()} <= {"decode.onnx_data"}
    assert locations["model"] == locations["decode"]
    assert {entry["location"] for entry in locations["model"].values()} == {"model.onnx_data"}
    parameters = sum(p.numel() for p in pair.float32.parameters())
    size = (pair.bundle / "onnx" / "model.onnx_data").stat().st_size
    assert 4 * parameters <= size <= 4 * parameters + 4096 * len(locations["model"])

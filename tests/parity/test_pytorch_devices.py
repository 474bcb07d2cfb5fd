"""The decode graphs for CUDA, on the CPU as CUDA would run them, against PyTorch: every field that changes arithmetic.

The truth is PyTorch's float64; a graph may be twice as far from it as PyTorch is in the graph's own precision.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from export.pipeline import export_bundle
from runtime.bundle.bundle import open_bundle
from runtime.graphs.decode import open_decode_graph
from runtime.ort.placement import Placement

REHEARSED = Placement(on_device=True)
KINDS = {"fp32": torch.float32, "fp16": torch.float16}
FLOOR = 1e-6
GPT2S = [
    {"activation_function": "relu", "n_inner": 49},
    {"activation_function": "gelu", "tie_word_embeddings": False, "n_positions": 75},
    {"activation_function": "silu", "scale_attn_by_inverse_layer_idx": True, "n_positions": 131},
    {"activation_function": "tanh", "scale_attn_weights": False, "n_layer": 1},
    {"activation_function": "gelu_new", "n_embd": 80, "n_head": 2, "layer_norm_epsilon": 1e-2},
]


@pytest.fixture(scope="module", params=GPT2S, ids=str)
def tiny(request, tmp_path_factory, seeded_checkpoint):
    """A small GPT-2: its sessions by precision, and PyTorch's models by kind."""
    folder = tmp_path_factory.mktemp("devices")
    checkpoint = seeded_checkpoint(folder / "checkpoint", **{"n_layer": 2, **request.param})
    assert export_bundle(str(checkpoint), folder / "bundle", precisions=("fp32", "fp16")).passed
    opened = open_bundle(folder / "bundle")
    models = {kind: load_model(checkpoint, kind) for kind in (*KINDS.values(), torch.float64)}
    sessions = {name: open_decode_graph(opened, precision=name, placement=REHEARSED, threads=1) for name in KINDS}
    made = SimpleNamespace(sessions=sessions, models=models, config=models[torch.float64].config)
    made.noise = {name: find_noise(made, kind) for name, kind in KINDS.items()}
    return made


def load_model(folder, kind):
    return GPT2LMHeadModel.from_pretrained(folder, dtype=kind, attn_implementation="eager").eval()


def random_ids(tiny, length, seed=0):
    return np.random.default_rng(seed + length).integers(0, tiny.config.vocab_size, length).tolist()


def pytorch(tiny, kind, ids):
    """Logits [S, V], and keys and values [1, H, S, D] by their names."""
    with torch.no_grad():
        found = tiny.models[kind](torch.tensor([ids]), use_cache=True)
    arrays = {"logits": found.logits[0]}
    for n, layer in enumerate(found.past_key_values.layers):
        arrays[f"present.{n}.key"], arrays[f"present.{n}.value"] = layer.keys, layer.values
    return {name: array.to(torch.float64).numpy() for name, array in arrays.items()}


def off(found, truth):
    """Relative to the norm of the truth."""
    assert found.shape == truth.shape
    assert np.isfinite(found).all()
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def find_noise(tiny, kind):
    """PyTorch's own largest errors over texts: of each tensor, and of the logits of its worst single position."""
    noise = {}
    for length in (1, 2, 7, 16, 31, 40):
        found, truth = (pytorch(tiny, each, random_ids(tiny, length, 99)) for each in (kind, torch.float64))
        errors = {name: off(found[name], true) for name, true in truth.items()}
        errors["last"] = max(map(off, found["logits"], truth["logits"]))
        noise = {name: max(noise.get(name, 0.0), error) for name, error in errors.items()}
    return noise


def assert_near(tiny, precision, found, truth):
    for name, array in found.items():
        true = truth["logits"][-1] if name == "last" else truth[name]
        assert off(array, true) <= max(2 * tiny.noise[precision][name], FLOOR), name


@pytest.mark.parametrize("precision", KINDS)
@pytest.mark.parametrize("chunks", [(40,), (1, 2, 37), (17, 1, 1, 1, 20), (1,) * 12], ids=str)
def test_random_ids_in_chunks_are_as_near_to_float64_as_pytorch(tiny, precision, chunks):
    ids, found = random_ids(tiny, sum(chunks)), []
    with tiny.sessions[precision].sequence(len(ids)) as state:
        for count in chunks:
            said, logits, _ = state.read(ids[state.length : state.length + count], last=count)
            assert said.tolist() == logits.argmax(-1).tolist()
            found.append(logits.copy())  # the next run may overwrite them
        cache = state.cache()
    assert_near(tiny, precision, {"logits": np.concatenate(found), **cache}, pytorch(tiny, torch.float64, ids))


@pytest.mark.parametrize("precision", KINDS)
def test_a_text_as_long_as_the_context_is_as_near_as_pytorch(tiny, precision):
    """To its last place, which no size of a cache goes beyond; with PyTorch's errors on this text."""
    ids = random_ids(tiny, tiny.config.n_positions)
    with tiny.sessions[precision].sequence() as state:
        assert state.forward.cache.capacity == len(ids)
        state.read(ids[:-1], last=1)
        logits, cache = state.step(ids[-1:])[1], state.cache()
    truth, own = (pytorch(tiny, kind, ids) for kind in (torch.float64, KINDS[precision]))
    noise = {name: max(off(own[name], true), tiny.noise[precision][name]) for name, true in truth.items()}
    worst = max(*map(off, own["logits"], truth["logits"]), tiny.noise[precision]["last"])
    assert off(logits, truth["logits"][-1]) <= max(2 * worst, FLOOR)
    for name, array in cache.items():
        assert off(array, truth[name]) <= max(2 * noise[name], FLOOR), name


@pytest.mark.parametrize("precision", KINDS)
def test_rows_of_different_lengths_are_as_near_as_pytorch(tiny, precision):
    """Admitted together and later, stepped, and moved when one before them goes."""
    texts = [random_ids(tiny, length, 7) for length in (9, 3, 14, 1)]
    batch = tiny.sessions[precision].batch(5, 64)

    def check(logits):
        for row, (text, last) in enumerate(zip(texts, logits, strict=True)):
            truth = pytorch(tiny, torch.float64, text)
            assert_near(tiny, precision, {"last": last, **batch.cache(row)}, truth)

    check(batch.admit(texts)[1])
    for step in range(6):
        more = random_ids(tiny, len(texts), 50 + step)
        texts = [[*text, token] for text, token in zip(texts, more, strict=True)]
        check(batch.step(more)[1])
        if step == 1:
            batch.remove(1)
            texts[1] = texts.pop()
        if step == 3:
            texts.append(random_ids(tiny, 5, 8))
            logits = batch.admit(texts[-1:])[1]
            assert_near(tiny, precision, {"last": logits[0]}, pytorch(tiny, torch.float64, texts[-1]))


@pytest.mark.parametrize("precision", KINDS)
def test_steps_that_feed_themselves_choose_what_pytorch_finds_as_likely_as_any(tiny, precision):
    ids = random_ids(tiny, 5)
    with tiny.sessions[precision].sequence(64) as state:
        said = [state.advance(ids)]
        for steps in (1, 2, 20, 16):  # more than a log holds
            state.launch(said[-1], steps)
            said += state.collect()
        cache = state.cache()
    whole = [*ids, *said[:-1]]
    truth, own = (pytorch(tiny, kind, whole) for kind in (torch.float64, KINDS[precision]))
    noise = 2 * np.abs(own["logits"] - truth["logits"]).max()
    behind = truth["logits"][len(ids) - 1 :]
    assert len(said) == len(behind) == 40
    assert (behind.max(-1) - behind[np.arange(len(said)), said] <= 2 * noise).all()
    for name, array in cache.items():
        assert off(array, truth[name]) <= max(2 * max(off(own[name], truth[name]), tiny.noise[precision][name]), FLOOR)


def test_float16_is_less_than_float32(tiny):
    """Else nothing above would tell one graph from the other."""
    ids = random_ids(tiny, 40)
    truth = pytorch(tiny, torch.float64, ids)["logits"]
    errors = []
    for session in tiny.sessions.values():
        with session.sequence() as state:
            errors.append(off(state.read(ids, last=40).logits, truth))
    assert errors[0] < errors[1] / 10

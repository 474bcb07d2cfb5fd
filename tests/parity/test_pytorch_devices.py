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
from runtime.graphs.work import Work
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
        assert state.slots._cache.capacity == len(ids)
        state.read(ids[:-1], last=1)
        logits, cache = state.step(ids[-1:])[1], state.cache()
    truth, own = (pytorch(tiny, kind, ids) for kind in (torch.float64, KINDS[precision]))
    noise = {name: max(off(own[name], true), tiny.noise[precision][name]) for name, true in truth.items()}
    worst = max(*map(off, own["logits"], truth["logits"]), tiny.noise[precision]["last"])
    assert off(logits, truth["logits"][-1]) <= max(2 * worst, FLOOR)
    for name, array in cache.items():
        assert off(array, truth[name]) <= max(2 * noise[name], FLOOR), name


class Texts:
    """Texts in slots of one cache; every run is judged against the truth."""

    def __init__(self, tiny, precision, count):
        self.tiny, self.precision = tiny, precision
        self.slots = tiny.sessions[precision].slots(count)
        self.ids = {}

    def run(self, more):
        """Append ids to slots."""
        works = [Work(slot, ids, len(self.ids.get(slot, ())), logits=True) for slot, ids in more.items()]
        for work in works:
            self.ids[work.slot] = [*self.ids.get(work.slot, ()), *work.token_ids]
            self.slots.reserve(work.slot, len(self.ids[work.slot]))
        for work, answer in zip(works, self.slots.run(works), strict=True):
            self.check(work.slot, {"last": answer.logits[0]})

    def check(self, slot, found):
        ids = self.ids[slot]
        truth = pytorch(self.tiny, torch.float64, ids)
        assert_near(self.tiny, self.precision, {**found, **self.slots.cache(slot, len(ids))}, truth)

    def copy(self, source, target, length):
        self.slots.reserve(target, length)
        self.slots.copy(source, target, length)
        self.ids[target] = self.ids[source][:length]
        self.check(target, {})


@pytest.mark.parametrize("precision", KINDS)
def test_slots_of_different_lengths_are_as_near_as_pytorch(tiny, precision):
    """Read together and later, stepped, left out now and then, copied, and taken by another text."""
    texts = Texts(tiny, precision, 6)
    texts.run({slot: random_ids(tiny, length, 7) for slot, length in enumerate((9, 3, 14, 1))})
    for step in range(6):
        more = random_ids(tiny, 5, 50 + step)
        texts.run({slot: [more[slot]] for slot in texts.ids if slot != 1 or step < 2})
        if step == 1:
            texts.copy(2, 4, 11)
        if step == 3:
            texts.ids[1] = []
            texts.run({1: random_ids(tiny, 5, 8), 0: more[:1]})
    for slot in texts.ids:
        texts.check(slot, {})


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
    after = truth["logits"][len(ids) - 1 :]
    assert len(said) == len(after) == 40
    assert (after.max(-1) - after[np.arange(len(said)), said] <= 2 * noise).all()
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

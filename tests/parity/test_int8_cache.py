"""An int8 cache: codes and what is read of them, beside PyTorch with keys and values rounded by hand."""

import json
import shutil
from contextlib import contextmanager

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import export.parity.int8_cache
import runtime
from export.graphs.int8_cache import write_int8_cache
from export.parity.int8_cache import CacheQuality, judge_cache
from export.parity.logits import distance, squares
from export.parity.rounding import rounded_cache
from export.quantization.cache_scales import CALIBRATION, find_scales
from runtime.bundle.bundle import open_bundle
from runtime.graphs.decode import DecodeGraph
from runtime.graphs.kinds import runs
from runtime.graphs.work import Work
from runtime.proof.rounded import prove_int8_cache

pytestmark = pytest.mark.skipif(not runs("int8_cache"), reason="this ONNX Runtime has no query_seqlens")
LENGTH = 31
NEAR = 2e-4  # of a code: float32 moves codes up to 127 by less than 127 * 2**-20
PROMPTS = ("It was a bright cold day", "The old house stood", "He opened the letter slowly and", "In the year")


@contextmanager
def rounding_by_hand(model, scales):
    """Keys and values of `model` are whole multiples of their scales, -128 to 127 of them, halves to even."""
    forwards = {}
    for layer, block in enumerate(model.transformer.h):
        steps = np.concatenate([scales[f"present.{layer}.{part}"].ravel() for part in ("key", "value")])
        steps = torch.from_numpy(steps.astype(np.float64)).to(model.dtype)
        module, width = block.attn.c_attn, block.attn.embed_dim
        forwards[module] = module.forward

        def forward(hidden, forward=module.forward, steps=steps, width=width):
            packed = forward(hidden).clone()
            packed[..., width:] = torch.clamp(torch.round(packed[..., width:] / steps), -128, 127) * steps
            return packed

        module.forward = forward
    yield
    for module in forwards:
        del module.forward


def read(model, ids):
    """PyTorch's last logits [V], and its keys and values by name."""
    with torch.no_grad():
        result = model(torch.as_tensor(ids)[None], use_cache=True)
    cache = {}
    for layer, found in enumerate(result.past_key_values.layers):
        cache[f"present.{layer}.key"], cache[f"present.{layer}.value"] = found.keys.numpy(), found.values.numpy()
    return result.logits[0, -1].numpy(), cache


def coarse_scales(pair, ids, factor):
    """Largest codes of 20, but for the first channel of each head, whose codes are clipped."""
    _, cache = read(pair.truth, ids)
    scales = {}
    for name, part in cache.items():
        scale = factor * np.abs(part).max(axis=(0, 2))[:, None] / 20
        scale[:, :, 0] /= 10
        scales[name] = scale.astype(np.float32)
    return scales


def truth_with(pair, ids, scales):
    """(last logits, codes by name) of PyTorch in float64 with keys and values rounded by hand."""
    with rounding_by_hand(pair.truth, scales):
        logits, cache = read(pair.truth, ids)
    return logits, {name: part / scales[name].astype(np.float64) for name, part in cache.items()}


def unrounded(pair, ids, scales):
    """Quotients before they are rounded, each layer's after those before it were, by name."""
    found, handles = {}, []
    with rounding_by_hand(pair.truth, scales):
        for layer, block in enumerate(pair.truth.transformer.h):
            module = block.attn.c_attn

            def note(_, inputs, layer=layer, module=module):
                packed = type(module).forward(module, inputs[0])
                for part, rows in zip(("key", "value"), packed.chunk(3, -1)[1:], strict=True):
                    name = f"present.{layer}.{part}"
                    found[name] = (rows[0] / torch.from_numpy(scales[name].astype(np.float64)).ravel()).numpy()

            handles.append(module.register_forward_pre_hook(note))
        read(pair.truth, ids)
    for handle in handles:
        handle.remove()
    return found


@pytest.fixture(scope="module")
def pair(make_pair):
    return make_pair()


@pytest.fixture(scope="module")
def decided(pair):
    """(ids, scales) with no quotient so near to the middle of two codes that float32 could take the other one."""
    ids = pair.text_ids(LENGTH)[0]
    for turn in range(100):
        scales = coarse_scales(pair, ids, 1 + turn / 100)
        off = [np.abs(part % 1 - 0.5).min() for part in unrounded(pair, ids, scales).values()]
        if min(off) > NEAR:
            return ids, scales
    pytest.fail("some quotient always lies in the middle")


@pytest.fixture
def graph(pair, decided):
    path = pair.ragged_path.with_name("int8_cache_by_hand.onnx")
    write_int8_cache(pair.ragged_path, decided[1], path)
    yield DecodeGraph(path, pair.architecture)
    path.unlink()


@pytest.mark.parametrize("lengths", [(LENGTH,), (1,) * LENGTH, (20, 1, 1, 9)], ids=["at once", "by one", "mixed"])
def test_a_graph_computes_what_pytorch_does_with_rounded_keys_and_values(pair, decided, graph, lengths):
    """Every code is the one by hand; logits are as near as float32's."""
    ids, scales = decided
    logits, codes = truth_with(pair, ids, scales)
    assert max(np.abs(part).max() for part in codes.values()) > 126.9  # some are clipped
    exact, _ = read(pair.truth, ids)
    with graph.sequence() as state:
        start = 0
        for length in lengths:
            _, found = state.step(ids[start : start + length].tolist())
            start += length
        cache = state.cache()
    for name, part in codes.items():
        assert cache[name].dtype == np.int8
        assert np.array_equal(cache[name], np.round(part)), name
    error = np.linalg.norm(found - logits) / np.linalg.norm(logits)
    assert error <= max(2 * pair.noise["logits", True], 1e-6)
    assert np.linalg.norm(logits - exact) / np.linalg.norm(exact) > 100 * error  # so that rounding was seen


def test_rows_of_many_lengths_are_rounded_each_as_alone(pair, decided, graph):
    ids, scales = decided
    _, codes = truth_with(pair, ids, scales)
    slots = graph.slots(3)
    slots.run([Work(0, ids[:7].tolist(), 0), Work(2, ids[:30].tolist(), 0)])
    slots.run([Work(0, ids[7:].tolist(), 7), Work(1, ids[:3].tolist(), 0), Work(2, ids[30:].tolist(), 30)])
    for slot, length in ((0, LENGTH), (1, 3), (2, LENGTH)):
        for name, part in slots.cache(slot, length).items():
            assert np.array_equal(part, np.round(codes[name][:, :, :length])), (slot, name)


def test_the_export_rounds_in_pytorch_as_by_hand(pair, decided):
    ids, scales = decided
    with rounded_cache(pair.truth, scales):
        logits, cache = read(pair.truth, ids)
    expected, codes = truth_with(pair, ids, scales)
    np.testing.assert_allclose(logits, expected, rtol=1e-12, atol=1e-12)
    for name, part in cache.items():
        np.testing.assert_allclose(part / scales[name].astype(np.float64), codes[name], atol=1e-9)


def test_scales_are_the_largest_of_pytorchs_keys_and_values(pair):
    """Over all texts but those that judge, which here hold other ids."""
    rng = np.random.default_rng(3)
    texts = rng.integers(0, pair.architecture.vocab_size, (CALIBRATION + 1, 20))
    slots = pair.ragged.slots(len(texts))
    slots.run([Work(slot, text.tolist(), 0) for slot, text in enumerate(texts)])
    found = find_scales(slots, 20)
    caches = [read(pair.truth, text)[1] for text in texts[:CALIBRATION]]
    assert found.keys() == caches[0].keys()
    for name, scale in found.items():
        largest = np.max([np.abs(cache[name]).max(axis=(0, 2)) for cache in caches], axis=0)
        assert scale.dtype == np.float32
        np.testing.assert_allclose(scale, largest[:, None] / 127, rtol=1e-5)


# the shipped checkpoint


def test_the_bundle_differs_by_the_small_graphs_and_their_scales_alone(precise_bundle):
    bundle = open_bundle(precise_bundle, verify=False)
    for precision in ("fp32", "int8", "int4"):
        path, ragged = bundle.graph_path("int8_cache", precision), bundle.graph_path("ragged", precision)
        assert bundle.weights_at(path) == bundle.weights_at(ragged)
        shape = bundle.manifest.architecture
        scales = 4 * 2 * shape.n_layer * shape.n_embd
        assert 0 < path.stat().st_size - ragged.stat().st_size - scales < 300 * shape.n_layer


def test_what_it_costs_is_in_the_manifest_and_within_a_thousandth(precise_bundle):
    found = open_bundle(precise_bundle, verify=False).manifest.parity["int8_cache"]["qualities"]
    assert [quality["weights"] for quality in found] == ["fp32", "int8", "int4"]
    for quality in found:
        cost = np.sqrt(np.prod([int8 / float32 for float32, int8 in (quality["at_once"], quality["token_by_token"])]))
        assert quality["cost"] == pytest.approx(cost - 1)
        assert quality["cost"] <= 0.001 == quality["most_cost"]
        assert quality["tokens"] == quality["stepped"] == 8 * 511
        assert 0.001 < quality["rounding"] < 0.05


def test_its_perplexities_are_pytorchs_over_all_positions_and_over_the_last_ones(precise, precise_bundle, monkeypatch):
    """Over so few readings that only the last ids are read id by id."""
    monkeypatch.setattr(export.parity.int8_cache, "READINGS", 0)
    monkeypatch.setattr(export.parity.int8_cache, "LEAST_STEPS", 9)
    texts = precise.text_ids(2 * 150).reshape(2, 150)  # more ids than are read at once
    with torch.no_grad():
        logits = precise.truth(torch.from_numpy(texts[:, :-1])).logits
    lost = -torch.log_softmax(logits, -1).gather(2, torch.from_numpy(texts[:, 1:, None]))[..., 0]
    expected = logits.argmax(-1).numpy()
    quality = judge_cache(open_bundle(precise_bundle, verify=False), "fp32", texts, expected)
    assert (quality.tokens, quality.stepped) == (2 * 149, 2 * 9)
    assert quality.at_once[0] == pytest.approx(float(lost.mean().exp()), rel=1e-5)
    assert quality.token_by_token[0] == pytest.approx(float(lost[:, -9:].mean().exp()), rel=1e-5)
    for float32, int8 in (quality.at_once, quality.token_by_token):
        assert 0 < abs(int8 / float32 - 1) < 0.02
    nothing = judge_cache(open_bundle(precise_bundle, verify=False), "fp32", texts, np.full_like(expected, -1))
    assert nothing.agreement == 0 < 0.9 < quality.agreement


@pytest.mark.parametrize(
    ("texts", "length", "steps"),
    [(8, 511, 511), (8, 1023, 64), (8, 95, 95), (8, 600, 424), (3, 2000, 731), (8, 2047, 64), (8, 30, 30)],
)
def test_texts_are_read_id_by_id_as_far_as_thousands_of_readings_take(texts, length, steps):
    """So that 8,192 ids are read in both ways together, but at least 64 id by id, where the texts are so long."""
    assert export.parity.int8_cache.steps_of(texts, length) == steps


def test_logits_are_as_far_off_as_their_centred_rows():
    """Of more rows than are compared at a time; a shift of a whole row is no distance."""
    rng = np.random.default_rng(5)
    true, noise = rng.standard_normal((70, 9)), rng.standard_normal((70, 9))
    found = (true + noise + 3 * rng.standard_normal((70, 1))).astype(np.float32)
    off, size = squares(found, true.astype(np.float32))
    project = np.eye(9) - np.full((9, 9), 1 / 9)
    assert off == pytest.approx(float(((noise @ project) ** 2).sum()), rel=1e-5)
    assert size == pytest.approx(float(((true @ project) ** 2).sum()), rel=1e-5)


def test_logits_that_are_no_numbers_are_endlessly_far_off():
    true = np.ones((3, 4), np.float32) * np.arange(4, dtype=np.float32)
    assert distance(true, true) == 0
    for wrong in (np.nan, np.inf):
        found = true.copy()
        found[1, 2] = wrong
        assert distance(found, true) == np.inf


def test_a_cost_is_the_mean_over_all_readings():
    quality = CacheQuality("fp32", 300, 100, (20.0, 20.02), (25.0, 24.9), agreement=1.0, rounding=0.01)
    assert quality.cost == pytest.approx((20.02 / 20) ** 0.75 * (24.9 / 25) ** 0.25 - 1, abs=1e-12)


def test_each_graph_is_proved_on_this_machine(precise_bundle):
    bundle = open_bundle(precise_bundle, verify=False)
    for precision in ("fp32", "int8", "int4"):
        (proof,) = prove_int8_cache(bundle, precision)
        assert (proof.graph, proof.precision, proof.tokens, proof.allowed) == ("int8_cache", precision, 160, 2)
        assert 0.5 < proof.error <= 2
        assert proof.passed


def test_a_wrong_scale_is_found(precise_bundle, tmp_path):
    """One layer's keys a tenth larger than they are."""
    folder = shutil.copytree(precise_bundle, tmp_path / "bundle")
    path = folder / "onnx" / "int8_cache.onnx"
    proto = onnx.load(path, load_external_data=False)
    (scale,) = [one for one in proto.graph.initializer if one.name == "present.2.key.scale"]
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(1.1), scale.name))
    path.write_bytes(proto.SerializeToString())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["onnx/int8_cache.onnx"]["size"] = path.stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (proof,) = prove_int8_cache(open_bundle(folder, verify=False), "fp32")
    assert not proof.passed
    assert proof.tensor == "present.2.key"


@pytest.fixture(scope="module")
def scales(precise_bundle):
    """As they lie in the graph."""
    proto = onnx.load(precise_bundle / "onnx" / "int8_cache.onnx", load_external_data=False)
    names = {one.name: one for one in proto.graph.initializer if one.name.endswith(".scale")}
    return {name.removesuffix(".scale"): numpy_helper.to_array(one) for name, one in names.items()}


@pytest.fixture(scope="module")
def cached(precise_bundle):
    return runtime.load(precise_bundle, device="cpu", cache="int8")


def test_greedy_tokens_are_pytorchs_but_where_rounding_could_swap_two(precise, cached, scales):
    """Where they differ, PyTorch's lead is less than rounding moves its own logits there, twice as far at most."""
    same = total = 0
    for prompt, made in zip(PROMPTS, cached.complete(list(PROMPTS), max_new_tokens=64, ignore_eos=True), strict=True):
        ids, start = [*precise.ids(prompt), *made.token_ids], len(precise.ids(prompt)) - 1
        with torch.no_grad():
            truth = precise.truth(torch.tensor([ids])).logits[0, start:-1]
            with rounding_by_hand(precise.truth, scales):
                rounded = precise.truth(torch.tensor([ids])).logits[0, start:-1]
        best, tokens = truth.argmax(-1), torch.tensor(made.token_ids)
        same, total = same + int((best == tokens).sum()), total + len(tokens)
        for at in (best != tokens).nonzero().ravel().tolist():
            lead = truth[at, best[at]] - truth[at, tokens[at]]
            assert lead <= 2 * 2 * (rounded[at] - truth[at]).abs().max(), f"token {at} of {prompt!r}"
    assert same / total > 0.95


def test_perplexity_at_full_context_is_that_of_pytorch_with_rounded_keys_and_values(precise, cached, scales):
    """Up to float32 noise, by which a code here and there is the next one: a hundredth of what rounding may cost."""
    text = precise.decoded(precise.text_ids(512)[0])
    ids = precise.tokenizer(text)["input_ids"][:512]
    score = cached.score(precise.decoded(ids))
    assert list(score.token_ids) == ids
    with torch.no_grad(), rounding_by_hand(precise.truth, scales):
        logits = precise.truth(torch.tensor([ids])).logits[0, :-1]
    expected = -torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None]).mean()
    assert np.log(score.perplexity) == pytest.approx(float(expected), abs=1e-4)

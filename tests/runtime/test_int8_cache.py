"""`cache="int8"`: what it refuses and how, the memory that it takes, and that every call serves it."""

import json
import pickle

import numpy as np
import pytest

import runtime
import runtime.graphs.kinds
import runtime.ort.host_memory
from runtime.api import check_served
from runtime.bundle.bundle import open_bundle
from runtime.cli.jobs import identity
from runtime.errors import BundleError
from runtime.graphs.cache import KeyValueCache
from runtime.graphs.chunks import CHUNK, chunks
from runtime.graphs.decode import DecodeGraph
from runtime.graphs.kinds import runs
from runtime.graphs.work import Work
from runtime.ort.placement import Placement

OPTIONS = "cache must be None or one of 'float32', 'int8', got "
LACKS = "this bundle has no int8 keys and values in {0}; export it with them: python -m export CHECKPOINT"
served = pytest.mark.skipif(not runs("int8_cache"), reason="this ONNX Runtime has no query_seqlens")


@pytest.fixture
def without(bundle_copy):
    """A bundle as those that were made before."""
    with bundle_copy.changed_manifest() as manifest:
        manifest["graphs"] = [graph for graph in manifest["graphs"] if graph["kind"] != "int8_cache"]
        del manifest["files"]["onnx/int8_cache.onnx"], manifest["parity"]["int8_cache"]
    (bundle_copy.folder / "onnx" / "int8_cache.onnx").unlink()
    return bundle_copy.folder


# what is refused


@pytest.mark.parametrize("cache", ["int4", "fp32", "INT8", "", " int8", 8, True, b"int8", ["int8"]])
def test_an_unknown_cache_is_refused_before_anything_is_read(refusal, cache):
    for call in (runtime.load, lambda path, **options: runtime.complete("x", model=path, **options)):
        assert refusal(ValueError, call, "no such folder", cache=cache) == f"{OPTIONS}{cache!r}"


def test_float16_and_cuda_have_none(refusal):
    message = refusal(ValueError, runtime.load, "no such folder", precision="fp16", cache="int8")
    assert message == "cache must be None or 'float32' where the precision is 'fp16', got 'int8'"
    message = refusal(ValueError, check_served, "fp32", None, "int8", Placement("cuda"))
    assert message == "cache must be None or 'float32' on CUDA, got 'int8'"


def test_a_bundle_without_says_how_to_add_it_and_is_served_as_ever(refusal, without, probe):
    for call in (runtime.load, lambda path, **options: runtime.complete("x", model=path, **options)):
        message = refusal(BundleError, call, without, device="cpu", cache="int8")
        assert message == f"{LACKS.format('fp32')} --cache int8 …"
    assert runtime.load(without, device="cpu").complete(probe.prompt, max_new_tokens=6).token_ids == probe.token_ids[:6]


def test_a_precision_that_lacks_it_is_named(refusal, bundle):
    message = refusal(BundleError, runtime.load, bundle, precision="int4", cache="int8")
    assert message == f"{LACKS.format('int4')} --precision int4 --cache int8 …"


def test_an_onnx_runtime_that_is_too_old_is_told_and_float32_is_served(refusal, bundle, monkeypatch, probe):
    monkeypatch.setattr(runtime.graphs.kinds, "QUERY_SEQLENS_SINCE", (99, 1))
    message = refusal(RuntimeError, runtime.load, bundle, device="cpu", cache="int8")
    assert message.startswith("cache='int8' needs ONNX Runtime 99.1 or newer, this is ")
    assert message.endswith('upgrade it: pip install "onnxruntime>=99.1"')
    model = runtime.load(bundle, device="cpu", cache="float32")
    assert model.complete(probe.prompt, max_new_tokens=6).token_ids == probe.token_ids[:6]


@pytest.mark.parametrize("command", ["complete", "score", "batch", "inspect"])
def test_a_command_says_so_in_one_line(cli_here, bundle, tmp_path, command):
    given, output = tmp_path / "given", tmp_path / "out.jsonl"
    given.write_text(json.dumps({"prompt": "It was"}) + "\n")
    more = {"score": [str(given)], "batch": [str(given), "--output", str(output)]}
    done = cli_here(command, *more.get(command, ["It was"]), "--model", str(bundle), "--cache", "int3")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"gpt2-onnx: {OPTIONS}'int3'\n")
    assert not output.exists()


# memory


def test_keys_and_values_take_a_quarter(bundle):
    shape = open_bundle(bundle, verify=False).manifest.architecture
    whole, quarter = (KeyValueCache(shape, 3, kind=kind) for kind in ("float32", "int8"))
    assert sum(array.nbytes for array in quarter.arrays) == 3 * shape.n_layer * 2 * shape.n_embd * shape.n_positions
    assert sum(array.nbytes for array in whole.arrays) == 4 * sum(array.nbytes for array in quarter.arrays)


@served
def test_four_times_as_many_slots_fill_the_same_memory(monkeypatch, tmp_path, manifest, bundle):
    shape = manifest["architecture"]
    each = shape["n_layer"] * 2 * shape["n_embd"] * shape["n_positions"]
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemAvailable:   {2 * 8 * 4 * each // 1024 + 1} kB\n")
    monkeypatch.setattr(runtime.ort.host_memory, "MEMINFO", meminfo)
    monkeypatch.setattr(runtime.ort.host_memory, "CGROUPS", ())
    slots = [runtime.load(bundle, device="cpu", verify=False, cache=cache).loop.slots for cache in ("float32", "int8")]
    assert slots == [8, 32]


# what is served


@served
def test_every_call_serves_it(cached, probe):
    """Greedy tokens of one text, alone, beside others, in pieces and turn by turn: the same ones everywhere."""
    ids = cached.complete(probe.prompt, max_new_tokens=8).token_ids
    assert ids == probe.token_ids[:8]  # PyTorch's
    assert [each.token_ids for each in cached.complete([probe.prompt] * 3, max_new_tokens=8)] == [ids] * 3
    assert "".join(cached.stream(probe.prompt, max_new_tokens=8)) == cached.decode(ids)
    with cached.session() as session:
        assert session.complete(probe.prompt, max_new_tokens=4).token_ids == ids[:4]
        assert session.complete("", max_new_tokens=4).token_ids == ids[4:]
    assert len(cached.complete(probe.prompt, max_new_tokens=8, draft=True).token_ids) == 8
    assert cached.complete(probe.prompt, max_new_tokens=8, temperature=1.0, seed=1).finish_reason == "length"


@served
def test_it_is_not_float32_and_near_it(model, cached, exactly):
    text = exactly(200)
    whole, rounded = (each.score(text).logprobs[1:] for each in (model, cached))  # the first has none
    assert np.abs(np.subtract(whole, rounded)).max() > 1e-4  # rounding was there
    assert cached.score(text).perplexity == pytest.approx(model.score(text).perplexity, rel=0.02)


@served
def test_inspection_is_that_of_float32(model, cached):
    found, expected = (each.inspect("It was a bright cold day").logits for each in (cached, model))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@served
def test_drafts_are_not_the_default(model, cached):
    """A run over several ids may round a key otherwise than runs over one, so that texts could differ by drafting."""
    assert model.drafting.exact
    assert not cached.drafting.exact


@served
def test_a_pickle_a_kept_model_and_a_batch_tell_it_from_float32(bundle, cached, probe):
    again = pickle.loads(pickle.dumps(cached))
    assert again.loading.cache == "int8"
    float32 = runtime.load(bundle, device="cpu", verify=False)
    plain, smaller = (identity(each.bundle, each.precision, each.loading.cache) for each in (float32, cached))
    assert smaller == f"{plain} int8 cache"
    for cache in ("int8", None, "int8"):
        made = runtime.complete(probe.prompt, model=bundle, device="cpu", cache=cache, max_new_tokens=4)
        assert made.token_ids == probe.token_ids[:4]


@served
@pytest.mark.parametrize("source_first", [True, False])
def test_a_beginning_that_is_copied_goes_on_as_the_one_that_was_read(cached, probe, source_first):
    """Codes are copied byte for byte, so that two rows of a run which hold the same give the same."""
    slots, ids = cached.decode_graph.slots(2), list(probe.prompt_ids)
    source, target = (0, 1) if source_first else (1, 0)
    slots.run([Work(source, ids, 0)])
    slots.copy(source, target, len(ids))
    for name, part in slots.cache(source, len(ids)).items():
        assert part.dtype == np.int8
        assert np.array_equal(part, slots.cache(target, len(ids))[name])
    one, other = slots.run([Work(slot, [probe.token_ids[0]], len(ids), logits=True) for slot in (source, target)])
    np.testing.assert_allclose(one.logits, other.logits, rtol=1e-5, atol=1e-4)
    assert one.next_ids[0] == other.next_ids[0] == probe.token_ids[1]


@served
def test_a_second_prompt_with_the_same_beginning_reads_only_what_is_new(bundle, runs, exactly):
    model = runtime.load(bundle, device="cpu", threads=1, verify=False, cache="int8")
    model.complete(exactly(100), max_new_tokens=1)
    runs.clear()
    model.complete(f"{exactly(100)} cat sat", max_new_tokens=1)
    assert 1 <= sum(runs) < 10


# chunks


@pytest.mark.parametrize(
    ("count", "answers", "expected"),
    [
        (3, 1, [(0, 3, 1)]),
        (4, 4, [(0, 4, 4)]),
        (5, 1, [(0, 4, 0), (4, 1, 1)]),
        (10, 3, [(0, 4, 0), (4, 4, 1), (8, 2, 2)]),
        (9, 9, [(0, 4, 4), (4, 4, 4), (8, 1, 1)]),
        (8, 0, [(0, 4, 0), (4, 4, 0)]),
    ],
)
def test_a_work_in_chunks_of_four(count, answers, expected):
    """(ids before it, ids, answers) of each."""
    work = Work(3, list(range(count)), 7, answers, logits=True)
    found = list(chunks(work, 4))
    assert [(part.past_length - 7, len(part.token_ids), part.answers) for part in found] == expected
    assert [token for part in found for token in part.token_ids] == list(range(count))
    assert all(part.slot == 3 and part.logits for part in found)


@served
def test_answers_after_every_id_of_several_chunks_are_those_of_one_run(bundle, cached):
    """Beside a text that decodes; a run as wide as the text differs by float32's noise, and a code here and there."""
    opened = open_bundle(bundle, verify=False)
    rng = np.random.default_rng(0)
    ids = rng.integers(1, opened.manifest.architecture.vocab_size, 2 * CHUNK + 20).tolist()
    works = [Work(0, ids[:1], 0), Work(1, ids, 0, len(ids), logits=True), Work(2, ids[:5], 0, 2, logits=True)]
    found = cached.decode_graph.slots(3).run(works)
    assert [len(answer.next_ids) for answer in found] == [1, len(ids), 2]
    assert found[1].logits.shape == (len(ids), opened.manifest.architecture.vocab_size)
    graph = DecodeGraph(opened.graph_path("int8_cache"), opened.manifest.architecture, threads=1)
    whole = graph.slots(1)
    whole._runs._most = len(ids)
    (expected,) = whole.run([Work(0, ids, 0, len(ids), logits=True)])
    error = np.linalg.norm(found[1].logits - expected.logits) / np.linalg.norm(expected.logits)
    assert error < 1e-3  # rounding keys and values costs 7e-3
    np.testing.assert_allclose(found[2].logits, expected.logits[3:5], rtol=1e-3, atol=1e-2)

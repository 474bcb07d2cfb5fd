"""State in a device's memory, rehearsed on the CPU: what comes out, and what is read, written and waited for.

`Placement(on_device=True)` runs on the CPU what CUDA would, with the device's arrays in the host's memory. What must
come out the host path says in float32; in float16 the same graph does, run over a token at a time.
"""

import gc
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

import runtime.graphs.decode
from runtime.bundle.bundle import open_bundle
from runtime.graphs.decode import MOST_IDLE
from runtime.graphs.device.cache import DeviceCache, bucket, row_bucket
from runtime.graphs.device.graph import DeviceGraph
from runtime.graphs.device.runs import CAPTURE_STEPS, MOST_CAPTURES
from runtime.graphs.device.state import LOG
from runtime.model import Loading, Model
from runtime.ort.memory import DeviceArray
from runtime.ort.placement import Placement

REHEARSED = Placement(on_device=True)
PRECISIONS = ("fp32", "fp16")
UNEQUAL = 0.1  # of float16's tokens that may differ from PyTorch's, where two are nearly as likely


def load(folder, precision="fp32", placement=REHEARSED):
    loading = Loading(open_bundle(folder, verify=False), precision, placement, threads=1)
    return Model(loading, loading.make())


class Stepped:
    """In place of a model's own way to step: a token a run, its id by the logits."""

    @contextmanager
    def step(self, state, _generation, _known):
        def step(ids):
            logits = state.step(ids)[1]
            return int(np.argmax(logits)), logits

        yield step


@pytest.fixture(scope="session", params=PRECISIONS)
def pair(request, bundle, model):
    """(A model on a device, a model that says what must come out)."""
    on_device = load(bundle, request.param)
    if request.param == "fp32":
        return on_device, model
    stepped = load(bundle, "fp16")
    stepped._parts = replace(stepped._parts, drafting=Stepped())
    return on_device, stepped


@pytest.fixture(scope="session")
def on_device(bundle):
    return load(bundle)


@pytest.fixture
def unused(bundle):
    """A model on a device that nobody has used."""
    return load(bundle)


def agreeing(found, expected):
    """How many tokens of texts are equal before the first in each that is not."""
    total = 0
    for one, other in zip(found, expected, strict=True):
        assert len(one) == len(other)
        total += next((n for n, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))
    return total


def assert_alike(precision, found, expected):
    """Equal in float32. In float16 the last bits depend on what else is in a run, and with them few tokens."""
    if precision == "fp32":
        assert found == expected
    assert agreeing(found, expected) >= (1 - UNEQUAL) * sum(map(len, expected))


# a text


@pytest.mark.parametrize("precision", PRECISIONS)
def test_greedy_tokens_are_pytorchs(bundle, probes, precision):
    model = load(bundle, precision)
    found = [model.complete(probe.prompt, max_new_tokens=len(probe.token_ids)).token_ids for probe in probes]
    assert_alike(precision, found, [probe.token_ids for probe in probes])


def test_greedy_texts_are_those_of_a_token_a_run(pair, probes):
    on_device, expected = pair
    for probe in probes:
        assert on_device.complete(probe.prompt) == expected.complete(probe.prompt)


def test_texts_of_every_small_length_have_that_length_and_their_first_tokens(pair, probe):
    on_device, expected = pair
    whole = expected.complete(probe.prompt, max_new_tokens=40).token_ids
    for count in range(1, 41):
        completion = on_device.complete(probe.prompt, max_new_tokens=count)
        assert (completion.token_ids, completion.finish_reason) == (whole[:count], "length")
        assert completion.text == expected.decode(whole[:count])


def test_a_text_stops_where_it_should_although_tokens_are_told_late(pair, probe):
    on_device, expected = pair
    for token in dict.fromkeys(probe.token_ids[:36]):
        options = {"stop": expected.decode([token]), "max_new_tokens": 40}
        completion = on_device.complete(probe.prompt, **options)
        assert completion == expected.complete(probe.prompt, **options)
        assert completion.finish_reason == "stop"


@pytest.mark.parametrize("place", [0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32])
def test_an_id_that_ends_a_text_ends_it_wherever_it_comes(bundle_copy, probe, vocabulary, place):
    bundle_copy.configure(eos_token_id=probe.token_ids[place])
    first = probe.token_ids.index(probe.token_ids[place])
    completion = load(bundle_copy.folder).complete(probe.prompt)
    assert completion.token_ids == probe.token_ids[: first + 1]
    assert completion.text == vocabulary.decode(probe.token_ids[:first], skip_special_tokens=False)
    assert completion.finish_reason == "stop"


def test_a_text_ends_with_the_context(on_device, model, exactly, context):
    for left in (1, 2, 3, 17, 40):
        prompt = exactly(context - 1 - left)
        completion = on_device.complete(prompt, max_new_tokens=1000, ignore_eos=True)
        assert completion == model.complete(prompt, max_new_tokens=1000, ignore_eos=True)
        assert completion.prompt_tokens + len(completion.token_ids) == context


@pytest.mark.parametrize(
    "options", [{}, {"max_new_tokens": 1}, {"stop": ["\0", " the"]}, {"seed": 3, "top_k": 20}], ids=str
)
def test_a_stream_gives_the_same_pieces(on_device, model, probes, options):
    for probe in probes:
        stream = on_device.stream(probe.prompt, **options)
        assert list(stream) == list(model.stream(probe.prompt, **options))
        assert stream.completion == model.complete(probe.prompt, **options)


@pytest.mark.parametrize("pieces", [1, 2, 3, 5, 9, 20, 40])
def test_a_stream_closed_early_gives_its_cache_back_as_good_as_new(unused, probes, pieces):
    with unused.stream(probes[0].prompt) as stream:
        for _ in range(pieces):
            next(stream)
        assert unused.decode_graph._idle == []
    (idle,) = unused.decode_graph._idle
    for probe in probes:
        assert unused.complete(probe.prompt).token_ids == probe.token_ids
        assert unused.decode_graph._idle == [idle]


@pytest.mark.parametrize(
    ("options", "close"),
    [
        ({"seed": 5, "temperature": 0.9, "top_k": 20}, False),
        ({"seed": 6, "top_k": 20, "repetition_penalty": 1.2}, False),
        ({"repetition_penalty": 1.3}, False),
        ({"logprobs": 3}, True),
        ({"draft": True}, False),
        ({"draft": True, "seed": 8, "top_k": 20}, False),
        ({"draft": False}, False),
    ],
    ids=str,
)
def test_other_ways_to_choose_a_token_are_the_host_paths(on_device, model, probes, options, close):
    """Ids are drawn from 20: between 8192 the last bits of their probabilities decide now and then."""
    for probe in probes[:3]:
        completion, expected = (each.complete(probe.prompt, **options) for each in (on_device, model))
        assert completion.token_ids == expected.token_ids
        assert completion.text == expected.text
        assert (completion.logprobs is not None) == close
        for found, wanted in zip(completion.logprobs or (), expected.logprobs or (), strict=True):
            assert found.logprob == pytest.approx(wanted.logprob, abs=1e-4)
            assert [token for token, _ in found.top] == [token for token, _ in wanted.top]


@pytest.mark.parametrize("stride", [None, 100])
def test_scores_are_the_host_paths(on_device, model, probe, stride):
    text = (probe.prompt + probe.text) * 8  # more than a context
    found, expected = (each.score(text, stride=stride) for each in (on_device, model))
    assert found.token_ids == expected.token_ids
    assert found.logprobs[0] is None
    assert np.allclose(found.logprobs[1:], expected.logprobs[1:], rtol=0, atol=1e-4)


# sessions


def test_a_session_says_what_the_whole_text_would_get(pair, probes):
    on_device, expected = pair
    with on_device.session() as session, expected.session() as other:
        for probe, count in zip(probes, (1, 5, 16, 17, 30), strict=False):
            assert session.complete(probe.prompt, max_new_tokens=count) == other.complete(
                probe.prompt, max_new_tokens=count
            )
            assert (session.text, session.token_ids) == (other.text, other.token_ids)
        for back in (1, 7, 33):
            session.rewind(back)
            other.rewind(back)
            assert session.complete(max_new_tokens=9) == other.complete(max_new_tokens=9)


@pytest.mark.parametrize("pieces", [1, 3, 8])
def test_a_session_goes_on_behind_a_stream_that_was_closed(on_device, model, probe, pieces):
    with on_device.session() as session, model.session() as other:
        for each in (session, other):
            with each.stream(probe.prompt) as stream:
                for _ in range(pieces):
                    next(stream)
        assert session.token_ids == other.token_ids
        assert session.complete(" Then", max_new_tokens=20) == other.complete(" Then", max_new_tokens=20)


def test_a_session_stopped_in_the_middle_of_what_was_launched_goes_on_from_there(on_device, model, probe, vocabulary):
    stop = vocabulary.decode([probe.token_ids[5]])
    with on_device.session() as session, model.session() as other:
        for each in (session, other):
            each.complete(probe.prompt, stop=stop)
        assert session.token_ids == other.token_ids
        assert session.complete(max_new_tokens=20) == other.complete(max_new_tokens=20)


# batches


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5])
def test_a_batch_of_any_size_gives_each_prompt_its_own_text(pair, probes, batch_size):
    """More prompts than rows, of different lengths, and rows that end at different times, so that others move."""
    on_device, expected = pair
    prompts = [*(probe.prompt for probe in probes), "", "It was", "The", *(probe.prompt for probe in probes[:2])]
    options = {"max_new_tokens": 24, "stop": [".", ","]}
    found = on_device.complete(prompts, batch_size=batch_size, **options)
    alone = [expected.complete(prompt, **options) for prompt in prompts]
    if on_device.precision == "fp32":
        assert found == alone
    else:
        assert sum(a == b for a, b in zip(found, alone, strict=True)) >= (1 - UNEQUAL) * len(alone)
    assert len({len(completion.token_ids) for completion in found}) > 2


def test_rows_are_moved_on_the_device(on_device, probes, monkeypatch):
    """Rows of three kinds of arrays, those of equal ones at their places; and nothing of a cache is read."""
    moved, move = [], DeviceCache.move
    monkeypatch.setattr(DeviceCache, "move", lambda *args: (moved.append(args[1:]), move(*args)))
    read = spied(monkeypatch, "read")
    counts = [12, 3, 9, 5, 12]
    batch = on_device.decode_graph.batch(len(probes), 64)
    rows, tokens = list(probes), batch.admit([probe.prompt_ids for probe in probes], logits=False)[0]
    for step in range(1, max(counts)):
        for row in reversed(range(len(rows))):
            if counts[probes.index(rows[row])] == step:
                batch.remove(row)
                rows[row] = rows[-1]
                rows.pop()
        tokens = batch.step([probe.token_ids[step - 1] for probe in rows], logits=False)[0]
        assert tokens.tolist() == [probe.token_ids[step] for probe in rows]
    assert moved
    assert {len(array.shape) for array in read} == {2}


def test_a_row_is_copied_whole_and_the_others_are_left_alone(bundle):
    architecture = open_bundle(bundle, verify=False).manifest.architecture
    for kind in (np.float32, np.float16):
        cache = DeviceCache(architecture, 3, 128, dtype=kind, placement=REHEARSED)
        given = {}
        for number, (name, array) in enumerate(cache.arrays.items()):
            given[name] = (np.arange(np.prod(array.shape)) % 997 + number).astype(kind).reshape(array.shape)
            array.write(given[name])
        cache.move(2, 0, 5)
        for name, array in cache.arrays.items():
            assert np.array_equal(array.read(), given[name][[2, 1, 2]])
        for name, found in cache.row(1, 7).items():
            assert np.array_equal(found, given[name.removeprefix("present")][1:2, :, :7])


@pytest.mark.parametrize("options", [{"seed": 4, "top_k": 20}, {"logprobs": 0}, {"repetition_penalty": 1.2}])
def test_a_batch_that_reads_logits_gives_the_host_paths_tokens(on_device, model, probes, options):
    prompts = [probe.prompt for probe in probes]
    found, expected = (
        each.complete(prompts, batch_size=3, max_new_tokens=20, **options) for each in (on_device, model)
    )
    assert [each.token_ids for each in found] == [each.token_ids for each in expected]


# what stays on the device


def spied(monkeypatch, name):
    """The arrays of which the method is called, in order."""
    arrays, method = [], getattr(DeviceArray, name)
    monkeypatch.setattr(DeviceArray, name, lambda array, *args: (arrays.append(array), method(array, *args))[1])
    return arrays


def input_names(model):
    """Of the arrays in which single steps find their inputs, in the cache that was used last."""
    states = model.decode_graph._idle[-1].forward.one._steps.values()
    return {id(array): name for state in states for name, array in state._inputs.items()}


def test_a_greedy_text_brings_ids_and_a_counter_to_the_host_and_nothing_else(unused, probe, monkeypatch):
    read = spied(monkeypatch, "read")
    assert unused.complete(probe.prompt).token_ids == probe.token_ids
    names = input_names(unused)
    (prompts, *steps) = read
    assert prompts.shape == (1, 1)  # what the prompt's run said
    assert {names[id(array)] for array in steps} == {"token_log", "log_indices"}
    assert {array.shape for array in steps} == {(LOG,), (1,)}


def test_once_the_device_feeds_itself_nothing_is_written_but_where_the_log_stands(unused, probe, monkeypatch):
    written, launched, launch = spied(monkeypatch, "write"), [], DeviceGraph.launch

    def noted(*args):
        launch(*args)
        launched.append(len(written))

    monkeypatch.setattr(DeviceGraph, "launch", noted)
    assert unused.complete(probe.prompt).token_ids == probe.token_ids
    names = input_names(unused)
    between = [names[id(array)] for array in written[launched[0] :]]
    assert len(launched) > 4
    assert set(between) == {"log_indices"}  # 64 tokens are more than a log holds
    assert len(between) <= 2


@pytest.mark.parametrize(
    ("count", "steps"),
    [
        (1, []),
        (2, [1]),
        (3, [1, 1]),
        (9, [1, 2, 4, 1]),
        (17, [1, 2, 4, 8, 1]),
        (64, [1, 2, 4, 8, 16, 16, 16]),
        (100, [1, 2, 4, 8, 16, 16, 16, 16, 16, 4]),
    ],
)
def test_the_host_waits_for_twice_as_many_tokens_each_time_and_then_for_16(on_device, monkeypatch, count, steps):
    launched, collected, launch, collect = [], [], DeviceGraph.launch, DeviceGraph.collect
    monkeypatch.setattr(DeviceGraph, "launch", lambda *args: (launched.append(args[-1]), launch(*args))[1])
    monkeypatch.setattr(DeviceGraph, "collect", lambda graph: (collected.append(1), collect(graph))[1])
    completion = on_device.complete("It was", max_new_tokens=count, ignore_eos=True)
    assert (len(completion.token_ids), launched, len(collected)) == (count, steps, len(steps))


@pytest.mark.parametrize("steps", [(LOG,), (16,), (5,), (1,), (31, 2, LOG), (20, 13), (30, 1, 1, 1)], ids=str)
def test_the_log_begins_again_where_it_is_full(on_device, probes, steps):
    probe = max(probes, key=lambda each: len(each.token_ids))
    with on_device.decode_graph.sequence() as state:
        said = [state.advance(probe.prompt_ids)]
        turn = 0
        while (count := min(steps[turn % len(steps)], len(probe.token_ids) - len(said))) > 0:
            state.launch(said[-1], count)
            said += state.collect()
            turn += 1
        assert state.length == len(probe.prompt_ids) + len(said) - 1
    assert tuple(said) == probe.token_ids
    assert len(said) > LOG


def test_steps_and_launches_take_turns(on_device, probe):
    """What single runs leave behind is what launched ones go on from, and the other way round."""
    with on_device.decode_graph.sequence() as state:
        said = [state.advance(probe.prompt_ids)]
        for count in (3, 1, 7, 2, 16):
            state.launch(said[-1], count)
            said += state.collect()
            said.append(state.advance(said[-1:]))
            state.rewind(state.length - 1)
            said.append(state.advance(said[-2:-1]))
            assert said.pop() == said[-1]
            token, logits = state.step(said[-1:])
            assert token == np.argmax(logits)
            said.append(token)
        state.rewind(len(probe.prompt_ids) + 2)
        state.launch(said[2], 8)
        assert state.collect() == said[3:11]
    assert tuple(said) == probe.token_ids[: len(said)]


@pytest.mark.parametrize("chunk", [1, 2, 3, 1000])
def test_a_prompt_in_chunks_of_any_size_gives_pytorchs_next_token(on_device, probes, chunk):
    for probe in probes:
        with on_device.decode_graph.sequence(64) as state:
            for start in range(0, len(probe.prompt_ids), chunk):
                token = state.advance(probe.prompt_ids[start : start + chunk])
        assert token == probe.token_ids[0]


def test_the_cache_holds_what_the_host_paths_cache_holds(on_device, model, probe):
    with on_device.decode_graph.sequence() as state, model.decode_graph.sequence() as other:
        other.advance([*probe.prompt_ids, *probe.token_ids[:10]])
        state.advance(probe.prompt_ids)
        state.launch(probe.token_ids[0], 10)
        state.collect()
        found, expected = state.cache(), other.cache()
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].shape == array.shape
        assert np.allclose(found[name], array, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int64, np.int32])
def test_an_array_starts_as_zeros_and_what_is_read_of_it_is_a_copy(kind):
    array = DeviceArray((3, 2), kind, REHEARSED)
    before = array.read()
    array.write(np.arange(6).reshape(3, 2))
    assert array.read().dtype == kind
    assert array.read().tolist() == [[0, 1], [2, 3], [4, 5]]
    assert before.tolist() == [[0, 0], [0, 0], [0, 0]]


# how much memory


@pytest.mark.parametrize(
    ("tokens", "most", "capacity"),
    [
        *((1, 512, 128), (128, 512, 128), (129, 512, 256), (257, 512, 512), (512, 512, 512), (1, 96, 96), (90, 96, 96)),
        *((700, 1000, 1000), (1024, 1024, 1024), (1025, 1500, 1500), (129, 200, 200)),
    ],
)
def test_capacities_are_few(tokens, most, capacity):
    assert bucket(tokens, most) == capacity


@pytest.mark.parametrize(
    ("rows", "most", "count"), [(1, 8, 1), (2, 8, 2), (3, 8, 4), (4, 8, 4), (5, 8, 8), (5, 6, 6), (3, 3, 3), (7, 7, 7)]
)
def test_steps_run_over_a_power_of_two_of_rows_or_all(rows, most, count):
    assert row_bucket(rows, most) == count


@pytest.mark.parametrize("tokens", [1, 127, 128, 129, 200, 256, 300, 512, None])
def test_a_sequence_has_room_for_its_tokens_and_no_more_than_the_context(unused, tokens, context):
    with unused.decode_graph.sequence(tokens) as state:
        capacity = state.forward.cache.capacity
        assert (tokens or context) <= capacity <= context
        token = state.advance([7] * (tokens or context))
    with unused.decode_graph.sequence() as roomy:  # what comes last does not depend on where the cache ends
        for start in range(0, tokens or context, 100):
            found = roomy.advance([7] * min(100, (tokens or context) - start))
        assert found == token


def test_caches_of_one_size_are_used_again_and_few_are_kept(unused, probes):
    session = unused.decode_graph
    for _ in range(3):
        for probe in probes:
            unused.complete(probe.prompt)
    assert len(session._idle) == 1
    (first,) = session._idle
    unused.complete(probes[0].prompt, max_new_tokens=200)
    assert [idle.capacity for idle in session._idle] == [128, 256]
    unused.complete([probe.prompt for probe in probes[:3]])
    gc.collect()
    assert [(idle.rows, idle.capacity) for idle in session._idle] == [(1, 128), (1, 256), (4, 128)]
    unused.complete([probe.prompt for probe in probes[:4]])
    gc.collect()
    assert len(session._idle) == 3
    with session.sequence(100) as state:
        assert state.forward is first.forward
    streams = [unused.stream(probes[0].prompt) for _ in range(MOST_IDLE + 3)]
    for stream in streams:
        next(stream)
    for stream in streams:
        stream.close()
    assert len(session._idle) == MOST_IDLE
    assert unused.complete(probes[1].prompt).token_ids == probes[1].token_ids


def test_a_cache_used_again_shows_nothing_of_what_it_held(unused, probes, exactly):
    unused.complete(exactly(100), max_new_tokens=28, ignore_eos=True)
    (idle,) = unused.decode_graph._idle
    for array in idle.forward.cache.arrays.values():
        array.write(np.full(array.shape, 1000, np.float32))
    for probe in probes:
        assert unused.complete(probe.prompt, max_new_tokens=40).token_ids == probe.token_ids[:40]
    assert unused.decode_graph._idle == [idle]


# what goes wrong


class Binding:
    """An IOBinding, and the arrays that are bound to it."""

    def __init__(self, real):
        self.real, self.inputs, self.shapes = real, {}, {}

    def __getattr__(self, name):
        return getattr(self.real, name)

    def bind_ortvalue_input(self, name, value):
        self.inputs[name] = value
        self.real.bind_ortvalue_input(name, value)

    def bind_input(self, name, device, index, kind, shape, address):
        self.shapes[name] = shape
        self.real.bind_input(name, device, index, kind, shape, address)

    def value(self, name):
        return self.inputs[name].numpy().copy()


class FakeSession:
    """The real session, but for what `before` does before each run."""

    def __init__(self, real, before=lambda _: None):
        self.real, self.before, self.runs = real, before, 0

    def __getattr__(self, name):
        return getattr(self.real, name)

    def io_binding(self):
        return Binding(self.real.io_binding())

    def run_with_iobinding(self, binding, options):
        self.runs += 1
        self.before(self.runs)
        self.real.run_with_iobinding(binding.real, options)


@pytest.fixture
def faked(bundle, monkeypatch):
    """A model on a device whose session is a fake of the real one, and that fake."""
    make = runtime.graphs.decode.make_session

    def load_with(kind, placement=REHEARSED, precision="fp32"):
        made = []

        def fake(path, **options):
            made.append(kind(make(path, **options)))
            return made[-1]

        with monkeypatch.context() as patch:
            patch.setattr(runtime.graphs.decode, "make_session", fake)
            model = load(bundle, precision, placement)
        return model, made[0]

    return load_with


def failing_once(at, error):
    def before(run):
        if run == at:
            raise error

    return lambda real: FakeSession(real, before)


NO_ROOM = "Non-zero status code returned: Failed to allocate memory for requested buffer of size 123\nand a second line"
MENDS = "choose a smaller batch_size or max_new_tokens, or free some"


@pytest.mark.parametrize("at", [1, 2, 3, 5, 12, 30])
def test_a_lack_of_memory_is_one_line_and_the_model_goes_on_with_another_cache(faked, refusal, probe, at):
    model, _ = faked(failing_once(at, RuntimeError(NO_ROOM)))
    assert refusal(MemoryError, model.complete, probe.prompt) == f"cpu has no memory left; {MENDS}"
    assert model.decode_graph._idle == []
    assert model.complete(probe.prompt).token_ids == probe.token_ids


@pytest.mark.parametrize(
    "said",
    [
        NO_ROOM,
        "CUDA failure 2: out of memory ; GPU=0",
        "Available memory of 12 is smaller than requested bytes of 34",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "std::bad_alloc",
    ],
)
def test_the_line_names_the_limit_that_was_set(faked, refusal, probe, said):
    placement = Placement(on_device=True, gpu_mem_limit=3_000_000)
    model, _ = faked(failing_once(1, RuntimeError(said)), placement)
    message = refusal(MemoryError, model.complete, probe.prompt)
    assert message == f"cpu has no memory left; gpu_mem_limit is 3,000,000 bytes; {MENDS}"


def test_a_lack_of_memory_for_a_batch_is_one_line_and_the_model_goes_on(faked, refusal, probes):
    model, _ = faked(failing_once(4, RuntimeError(NO_ROOM)))
    prompts = [probe.prompt for probe in probes]
    assert MENDS in refusal(MemoryError, model.complete, prompts)
    gc.collect()
    assert model.decode_graph._idle == []
    assert [each.token_ids for each in model.complete(prompts)] == [probe.token_ids for probe in probes]


@pytest.mark.parametrize("at", [1, 3, 12])
def test_a_session_that_had_no_memory_does_not_leave_its_cache_behind(faked, probe, at):
    model, _ = faked(failing_once(at, RuntimeError(NO_ROOM)))
    with model.session() as session, pytest.raises(MemoryError):
        session.complete(probe.prompt)
    assert model.decode_graph._idle == []


def test_caches_that_nobody_uses_make_room_for_one_that_somebody_needs(unused, probes, monkeypatch):
    make, failures = onnxruntime.OrtValue.ortvalue_from_shape_and_type, [RuntimeError(NO_ROOM)]

    def full(shape, *where):
        if len(shape) == 4 and failures:
            raise failures.pop()
        return make(shape, *where)

    unused.complete(probes[0].prompt)
    monkeypatch.setattr("onnxruntime.OrtValue.ortvalue_from_shape_and_type", full)
    found = unused.complete([probe.prompt for probe in probes])
    assert [each.token_ids for each in found] == [probe.token_ids for probe in probes]
    gc.collect()
    assert [idle.rows for idle in unused.decode_graph._idle] == [8]
    assert failures == []


def test_a_lack_of_memory_for_arrays_is_one_line_too(unused, refusal, probe, monkeypatch):
    def fail(*_):
        raise RuntimeError(NO_ROOM)

    monkeypatch.setattr("onnxruntime.OrtValue.ortvalue_from_shape_and_type", fail)
    assert refusal(MemoryError, unused.complete, probe.prompt) == f"cpu has no memory left; {MENDS}"
    monkeypatch.undo()
    assert unused.complete(probe.prompt).token_ids == probe.token_ids


@pytest.mark.parametrize("at", [1, 2, 3, 5, 12, 30])
@pytest.mark.parametrize("error", [RuntimeError("CUDA failure 700: an illegal address"), KeyError("x")], ids=repr)
def test_another_error_reaches_the_caller_as_it_is(faked, probe, at, error):
    model, _ = faked(failing_once(at, error))
    with pytest.raises(type(error)) as caught:
        model.complete(probe.prompt)
    assert caught.value is error
    assert model.complete(probe.prompt).token_ids == probe.token_ids


@pytest.mark.parametrize("at", [2, 5, 12])
def test_a_session_goes_on_after_an_error(faked, probe, at):
    model, _ = faked(failing_once(at, RuntimeError("CUDA failure 700")))
    with model.session() as session:
        with pytest.raises(RuntimeError, match="700"):
            session.complete(probe.prompt)
        assert session.text.startswith(probe.prompt)
        session.rewind(len(session.token_ids))
        assert session.complete(probe.prompt).token_ids == probe.token_ids


# captured graphs


class Capturing(FakeSession):
    """As ONNX Runtime's CUDA provider is with enable_cuda_graph.

    The first run of a graph's number in a thread warms up, captures and replays, so that the state advances three
    times; a later run replays what was captured, whatever is bound by then.
    """

    executions = 3

    def __init__(self, real):
        super().__init__(real)
        self.local = threading.local()
        self.captures, self.replays, self.plain = [], 0, 0  # tokens that a row had when a graph was captured

    def get_provider_options(self):
        return {"CUDAExecutionProvider": {"enable_cuda_graph": "1"}}

    def run_with_iobinding(self, binding, options):
        number = int(options.get_run_config_entry("gpu_graph_id"))
        if number == -1:
            self.plain += 1
            self.execute(binding, options)
            return
        captured = self.local.__dict__.setdefault("captured", {})
        if number not in captured:
            self.captures.append(int(binding.value("position_ids").max()))
            captured[number] = binding, int(binding.value("total_sequence_length")[0])
            for _ in range(self.executions):
                self.execute(binding, options)
            return
        self.replays += 1
        kept, total = captured[number]
        assert kept is binding
        assert total == binding.value("total_sequence_length")[0]  # on the host: a captured graph has it by value
        self.execute(kept, options)

    def execute(self, binding, options):
        ends = binding.value("position_ids").max() + 1
        assert ends <= binding.shapes["past_key_values.0.key"][2], "written beyond the cache"
        log, places = binding.value("token_log"), binding.value("log_indices")
        assert places.max() < len(log), "written beyond the log"
        self.real.run_with_iobinding(binding.real, options)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_texts_are_right_although_capturing_runs_more_than_once(faked, bundle, probes, precision):
    model, fake = faked(Capturing, precision=precision)
    plain = load(bundle, precision)
    for probe in (*probes, *probes[:2]):
        assert model.complete(probe.prompt) == plain.complete(probe.prompt)
    assert len(fake.captures) == 1  # one shape of steps, and its buffers stay where they are
    assert fake.plain == len(probes) + 2  # the prompts
    assert fake.replays > 64


def test_a_model_without_captured_graphs_asks_for_none(faked, probe):
    class Plain(Capturing):
        def get_provider_options(self):
            return {"CUDAExecutionProvider": {"enable_cuda_graph": "0"}}

    model, fake = faked(Plain)
    assert model.complete(probe.prompt).token_ids == probe.token_ids
    assert (fake.captures, fake.replays) == ([], 0)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_batches_are_right_although_capturing_runs_more_than_once(faked, on_device, probes, batch_size):
    model, fake = faked(Capturing)
    prompts = [*(probe.prompt for probe in probes), "", "It was"]
    options = {"max_new_tokens": 20, "stop": ["."], "batch_size": batch_size}
    for _ in range(2):
        assert model.complete(prompts, **options) == on_device.complete(prompts, **options)
        gc.collect()
    assert 0 < len(fake.captures) <= 2 * batch_size
    assert fake.replays > len(fake.captures)


def test_sessions_and_other_ways_to_choose_are_right_too(faked, on_device, probe):
    model, fake = faked(Capturing)
    for options in ({"seed": 3, "top_k": 20}, {"logprobs": 2}, {"draft": True}, {"repetition_penalty": 1.2}):
        assert (
            model.complete(probe.prompt, **options).token_ids == on_device.complete(probe.prompt, **options).token_ids
        )
    with model.session() as session, on_device.session() as other:
        for each in (session, other):
            each.complete(probe.prompt, max_new_tokens=20)
            each.rewind(5)
        assert session.complete(max_new_tokens=40) == other.complete(max_new_tokens=40)
    assert fake.captures
    assert fake.replays


def test_threads_one_after_the_other_capture_for_themselves(faked, probes):
    model, fake = faked(Capturing)
    for number in range(1, 4):
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(lambda: [model.complete(probe.prompt).token_ids for probe in probes]).result()
        assert found == [probe.token_ids for probe in probes]
        assert len(fake.captures) == number


def test_threads_at_once_get_what_they_get_alone(faked, probes):
    model, fake = faked(Capturing)
    together = threading.Barrier(4)

    def run(place):
        together.wait(timeout=60)
        mine = [probes[(place + turn) % len(probes)] for turn in range(3)]
        return [(model.complete(probe.prompt).token_ids, probe.token_ids) for probe in mine]

    with ThreadPoolExecutor(4) as pool:
        for pairs in pool.map(run, range(4)):
            for found, expected in pairs:
                assert found == expected
    assert 4 <= len(fake.captures) <= MOST_CAPTURES


def test_a_stream_begun_in_one_thread_goes_on_in_another(faked, probe):
    model, fake = faked(Capturing)
    stream = model.stream(probe.prompt)
    pieces = [next(stream) for _ in range(4)]
    with ThreadPoolExecutor(1) as pool:
        pieces += pool.submit(list, stream).result()
    assert "".join(pieces) == probe.text
    assert len(fake.captures) == 2


@pytest.mark.parametrize("left", range(1, 20))
def test_near_the_end_of_a_cache_nothing_is_captured_or_written_beyond(faked, model, exactly, context, left):
    """`execute` looks where each run writes."""
    captured, fake = faked(Capturing)
    prompt = exactly(context - left)
    options = {"max_new_tokens": left, "ignore_eos": True}
    assert captured.complete(prompt, **options) == model.complete(prompt, **options)
    assert fake.captures == ([context - left] if left > CAPTURE_STEPS else [])


def test_a_capture_that_fails_leaves_plain_runs_and_one_line_in_the_log(faked, probes, caplog):
    class Failing(Capturing):
        def execute(self, binding, options):
            super().execute(binding, options)  # the state has advanced, as far as a host can know
            if options.get_run_config_entry("gpu_graph_id") != "-1":
                raise RuntimeError("CUDA failure 900: operation not permitted\nwhen stream is capturing")

    caplog.set_level(logging.INFO, "runtime")
    model, fake = faked(Failing)
    for probe in probes:
        assert model.complete(probe.prompt).token_ids == probe.token_ids
    assert [each.token_ids for each in model.complete([probe.prompt for probe in probes])] == [
        probe.token_ids for probe in probes
    ]
    assert (len(fake.captures), fake.replays) == (1, 0)
    assert [record.getMessage() for record in caplog.records] == [
        "steps run without CUDA graphs: CUDA failure 900: operation not permitted when stream is capturing"
    ]


def test_no_more_graphs_are_captured_than_a_session_may_keep(faked, on_device):
    model, fake = faked(Capturing)
    for number in range(MOST_CAPTURES + 3):
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(model.complete, "It was", max_new_tokens=4).result()
        assert found == on_device.complete("It was", max_new_tokens=4)
        assert len(fake.captures) == min(number + 1, MOST_CAPTURES)


@pytest.mark.parametrize("off", [0, 2])
def test_a_device_that_did_another_number_of_steps_is_an_error_and_no_text(faked, probe, refusal, off):
    """A replay that runs more than once, or not at all."""

    class Wrong(Capturing):
        def execute(self, binding, options):
            for _ in range(off if self.replays == 9 else 1):
                super().execute(binding, options)

    model, _ = faked(Wrong)
    message = refusal(RuntimeError, model.complete, probe.prompt)
    assert message.startswith("the device did ")
    assert model.complete(probe.prompt).token_ids == probe.token_ids

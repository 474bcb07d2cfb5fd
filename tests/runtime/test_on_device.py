"""State in a device's memory, rehearsed on the CPU: what comes out, and what is read, written and waited for.

`Placement(on_device=True)` runs on the CPU what CUDA would, with the device's arrays in the host's memory. What must
come out the host path says in float32; in float16 the same graph does, run over a token at a time.
"""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from weakref import ref

import numpy as np
import onnxruntime
import pytest

import runtime.graphs.decode
from runtime.bundle.bundle import open_bundle
from runtime.engine.loop import Loop
from runtime.engine.scheduler import Scheduler
from runtime.engine.slots import MOST_KEPT
from runtime.graphs.device.cache import DeviceCache, bucket, row_bucket
from runtime.graphs.device.graph import DeviceGraph
from runtime.graphs.device.runs import CAPTURE_STEPS, MOST_CAPTURES
from runtime.graphs.device.state import LOG
from runtime.graphs.state import DecodeState
from runtime.graphs.work import Work
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
    """Slots that launch nothing: a run for each text, its id by the logits."""

    launches = False

    def __init__(self, slots):
        self.slots, self.count = slots, slots.count

    def __getattr__(self, name):
        return getattr(self.slots, name)

    def run(self, works):
        return [self.run_alone(work._replace(logits=True)) for work in works]

    def run_alone(self, work):
        (answer,) = self.slots.run([work])
        return answer._replace(next_ids=answer.logits.argmax(axis=1))


def slots_of(model):
    return model.loop._scheduler._slots


@pytest.fixture(scope="session", params=PRECISIONS)
def pair(request, bundle, model):
    """(A model on a device, a model that says what must come out)."""
    on_device = load(bundle, request.param)
    if request.param == "fp32":
        return on_device, model
    stepped = load(bundle, "fp16")
    loop = Loop(Scheduler(Stepped(slots_of(stepped))))
    stepped._parts = replace(stepped._parts, loop=loop)
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
def test_a_stream_closed_early_leaves_its_slot_as_good_as_new(unused, probes, pieces):
    with unused.stream(probes[0].prompt) as stream:
        for _ in range(pieces):
            next(stream)
        assert unused.loop.busy
    assert not unused.loop.busy
    for probe in probes:
        assert unused.complete(probe.prompt).token_ids == probe.token_ids
        assert not unused.loop.busy


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
def test_a_session_goes_on_after_a_stream_that_was_closed(on_device, model, probe, pieces):
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
    """More prompts than run at once, of different lengths, and texts that end at different times and leave gaps."""
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


def test_slots_are_copied_on_the_device(on_device, probes, monkeypatch):
    """Nothing of a cache is read, whose arrays have four dimensions; both copies go on with PyTorch's tokens."""
    copied, copy = [], DeviceCache.copy
    monkeypatch.setattr(DeviceCache, "copy", lambda *args: (copied.append(args[1:]), copy(*args))[1])
    slots, count = on_device.decode_graph.slots(2 * len(probes)), len(probes)
    slots.reserve(2 * count - 1, 64)
    said = [
        answer.next_ids[0] for answer in slots.run([Work(n, probe.prompt_ids, 0) for n, probe in enumerate(probes)])
    ]
    read = spied(monkeypatch, "read")
    for n, probe in enumerate(probes):
        slots.copy(n, count + n, len(probe.prompt_ids))
    assert [args[:2] for args in copied] == [(n, count + n) for n in range(count)]
    for step in range(12):
        assert said == [probe.token_ids[step] for probe in probes]
        pasts = [len(probe.prompt_ids) + step for probe in probes]
        works = [Work(n + side, [said[n]], pasts[n]) for n in range(count) for side in (0, count)]
        answers = [int(answer.next_ids[0]) for answer in slots.run(works)]
        assert answers[::2] == answers[1::2]
        said = answers[::2]
    assert {len(array.shape) for array in read} == {2}


def test_a_row_is_copied_whole_and_the_others_are_left_alone(bundle):
    architecture = open_bundle(bundle, verify=False).manifest.architecture
    for kind in (np.float32, np.float16):
        cache = DeviceCache(architecture, 3, 128, dtype=kind, placement=REHEARSED)
        given = {}
        for number, (name, array) in enumerate(cache.arrays.items()):
            given[name] = (np.arange(np.prod(array.shape)) % 997 + number).astype(kind).reshape(array.shape)
            array.write(given[name])
        cache.copy(2, 0, 5)
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
    """Of the arrays in which single steps find their inputs."""
    states = slots_of(model)._graph._steps.values()
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
def test_the_host_waits_for_twice_as_many_tokens_each_time_and_then_for_16(unused, monkeypatch, count, steps):
    launched, collected, launch, collect = [], [], DeviceGraph.launch, DeviceGraph.collect
    monkeypatch.setattr(DeviceGraph, "launch", lambda *args: (launched.append(args[-1]), launch(*args))[1])
    monkeypatch.setattr(DeviceGraph, "collect", lambda graph: (collected.append(1), collect(graph))[1])
    completion = unused.complete("It was", max_new_tokens=count, ignore_eos=True)
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
        capacity = state.slots._cache.capacity
        assert (tokens or context) <= capacity <= context
        token = state.advance([7] * (tokens or context))
    with unused.decode_graph.sequence() as roomy:  # what comes last does not depend on where the cache ends
        for start in range(0, tokens or context, 100):
            found = roomy.advance([7] * min(100, (tokens or context) - start))
        assert found == token


def size(slots):
    return slots._cache.rows, slots._cache.capacity


def test_memory_is_taken_for_as_many_slots_and_tokens_as_were_used_and_kept_for_the_next_texts(unused, probes):
    prompts = [probe.prompt for probe in probes[:3]]
    unused.complete(prompts)
    assert size(slots_of(unused)) == (4, 128)
    unused.complete(prompts[0], max_new_tokens=200)
    assert size(slots_of(unused)) == (4, 256)
    for _ in range(2 * MOST_KEPT):
        unused.complete(prompts[0])
    assert size(slots_of(unused)) == (row_bucket(MOST_KEPT + 1, 1024), 256)
    cache = slots_of(unused)._cache
    for probe in (*probes, *probes):
        assert unused.complete(probe.prompt).token_ids == probe.token_ids
    assert slots_of(unused)._cache is cache


def test_memory_that_nobody_uses_serves_the_next_text(unused, probes):
    """And no more of it is kept than the next text needs, if that one needs other memory."""
    slots = unused.decode_graph.slots(8)
    for slot, tokens, found in ((0, 60, (1, 128)), (3, 200, (4, 256)), (0, 128, (4, 256)), (1, 300, (2, 512))):
        slots.reserve(slot, tokens)
        assert size(slots) == found
        assert DecodeState(slots, slot).advance(probes[0].prompt_ids) == probes[0].token_ids[0]
        slots.give_back(slot)


@pytest.mark.parametrize("reserved", [(5, 60), (0, 300), (7, 500)])
def test_growth_keeps_what_other_slots_hold(unused, probes, reserved):
    """By slots, by tokens, and by both."""
    slots = unused.decode_graph.slots(8)
    states = [DecodeState(slots, n) for n in range(len(probes))]
    said = [[state.advance(probe.prompt_ids)] for state, probe in zip(states, probes, strict=True)]
    for turn in range(10):
        for state, ids in zip(states, said, strict=True):
            ids.append(state.advance(ids[-1:]))
        if turn == 4:
            before, _ = slots._cache, slots.reserve(*reserved)
            assert (slots._cache is before) == (reserved == (5, 60))
    assert [tuple(ids) for ids in said] == [probe.token_ids[:11] for probe in probes]


def test_a_slot_used_again_shows_nothing_of_what_it_held(unused, probes):
    slots = unused.decode_graph.slots(1)
    DecodeState(slots).advance([7] * 128)
    for array in slots._cache.arrays.values():
        array.write(np.full(array.shape, 1000, np.float32))
    for probe in probes:
        state = DecodeState(slots)
        said = [state.advance(probe.prompt_ids)]
        for steps in (1, 16, 15):
            state.launch(said[-1], steps)
            said += state.collect()
        assert tuple(said) == probe.token_ids[: len(said)]


# slots beside one another


@pytest.mark.parametrize("length", [1, 40, 239, 240, 241, 255, 256])
def test_steps_beside_a_slot_leave_what_it_holds(on_device, probes, length):
    """However full it is, and whether the steps are launched or run."""
    slots = on_device.decode_graph.slots(3)
    slots.reserve(2, 128)
    assert size(slots) == (3, 256)
    between = DecodeState(slots, 1)
    between.advance([7] * length)
    before = {name: array.copy() for name, array in between.cache().items()}
    ends = [probes[0], probes[1]]
    said = [[DecodeState(slots, slot).advance(probe.prompt_ids)] for slot, probe in zip((0, 2), ends, strict=True)]

    def works():
        pairs = zip((0, 2), ends, said, strict=True)
        return [Work(slot, ids[-1:], len(probe.prompt_ids) + len(ids) - 1) for slot, probe, ids in pairs]

    for steps in (1, 16, 5, 9):
        assert slots.steps(works()) >= steps
        slots.launch(works(), steps)
        assert len(slots._graph._under_way) == (1 if length + steps <= 256 else 2)
        for ids, more in zip(said, slots.collect(), strict=True):
            ids += more
        for ids, answer in zip(said, slots.run(works()), strict=True):
            ids.append(int(answer.next_ids[0]))
    assert [tuple(ids) for ids in said] == [probe.token_ids[: len(said[0])] for probe in ends]
    assert slots._cache.rows == 3
    for name, array in between.cache().items():
        assert np.array_equal(array, before[name])


def test_a_mix_of_prompts_single_ids_drafts_and_idle_slots_gives_pytorchs_tokens(on_device, probes):
    """Slot n begins at step n, then runs 1, 3 and 0 ids in turn."""
    slots, lengths = on_device.decode_graph.slots(len(probes)), [0] * len(probes)
    slots.reserve(len(probes) - 1, 128)
    texts = [[*probe.prompt_ids, *probe.token_ids] for probe in probes]
    for turn in range(15):
        works = []
        for n, (probe, text) in enumerate(zip(probes, texts, strict=True)):
            count = len(probe.prompt_ids) if turn == n else (1, 3, 0)[(turn + n) % 3] if turn > n else 0
            if count:
                ids = text[lengths[n] : lengths[n] + count]
                works.append(Work(n, ids, lengths[n], (0, 1, count)[(turn + n) % 3], logits=bool(turn % 2)))
                lengths[n] += count
        for work, answer in zip(works, slots.run(works), strict=True):
            end = lengths[work.slot]
            assert (
                answer.next_ids.tolist() == texts[work.slot][end - work.answers + 1 : end + 1] or work.past_length == 0
            )
            assert answer.next_ids[-1:].tolist() == texts[work.slot][end : end + 1] * min(work.answers, 1)
            if work.logits:
                assert answer.logits.argmax(axis=1).tolist() == answer.next_ids.tolist()


def test_launched_steps_that_nobody_collected_change_nothing(on_device, probe):
    """As when an interrupt comes between; the next launch or run goes on from where the text was."""
    with on_device.decode_graph.sequence() as state:
        said = [state.advance(probe.prompt_ids)]
        for turn in range(8):
            length = state.length
            state.launch(said[-1], 5)
            state.rewind(length)
            if turn % 2:
                said.append(state.advance(said[-1:]))
            else:
                state.launch(said[-1], 3)
                said += state.collect()
    assert tuple(said) == probe.token_ids[: len(said)]


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
    assert not model.loop.busy
    cache = slots_of(model)._cache
    assert model.complete(probe.prompt).token_ids == probe.token_ids
    assert slots_of(model)._cache is not cache


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
    full = [True]

    def fail(run):
        if run >= 4 and full:
            raise RuntimeError(NO_ROOM)

    model, _ = faked(lambda real: FakeSession(real, fail))
    prompts = [probe.prompt for probe in probes]
    assert MENDS in refusal(MemoryError, model.complete, prompts)
    assert not model.loop.busy
    full.clear()
    assert [each.token_ids for each in model.complete(prompts)] == [probe.token_ids for probe in probes]


@pytest.mark.parametrize("at", [1, 4, 5, 6, 8, 40])
def test_a_lack_of_memory_that_passes_costs_a_batch_nothing(faked, probes, at):
    """What failed is run again, a text at a time."""
    model, fake = faked(failing_once(at, RuntimeError(NO_ROOM)))
    found = model.complete([probe.prompt for probe in probes])
    assert [each.token_ids for each in found] == [probe.token_ids for probe in probes]
    assert fake.runs > at


@pytest.mark.parametrize("at", [1, 3, 12])
def test_a_session_that_had_no_memory_does_not_leave_its_cache_behind(faked, probe, at):
    model, _ = faked(failing_once(at, RuntimeError(NO_ROOM)))
    with model.session() as session, pytest.raises(MemoryError):
        session.complete(probe.prompt)
    assert not model.loop.busy
    cache = slots_of(model)._cache
    assert model.complete(probe.prompt).token_ids == probe.token_ids
    assert slots_of(model)._cache is not cache


@pytest.fixture
def small_device(bundle, monkeypatch):
    """A model on a device that has no room for more keys and values than those of 512 tokens."""
    model, make, made = load(bundle), onnxruntime.OrtValue.ortvalue_from_shape_and_type, []
    most = 512 * 2 * model.bundle.manifest.architecture.n_layer

    def make_if_there_is_room(shape, *where):
        if len(shape) == 4:
            taken = sum(tokens for value, tokens in made if value() is not None)
            if taken + shape[0] * shape[2] > most:
                raise RuntimeError(NO_ROOM)
        value = make(shape, *where)
        made.append((ref(value), shape[0] * shape[2] if len(shape) == 4 else 0))
        return value

    monkeypatch.setattr("onnxruntime.OrtValue.ortvalue_from_shape_and_type", make_if_there_is_room)
    return model


def test_texts_that_have_ended_make_room_for_those_that_begin(small_device, model, probes):
    """One after the other, more of them than fit; then a long one that takes all there is."""
    for probe in (*probes, *probes, *probes):
        assert small_device.complete(probe.prompt).token_ids == probe.token_ids
    options = {"max_new_tokens": 400, "ignore_eos": True}
    assert small_device.complete(probes[0].prompt, **options) == model.complete(probes[0].prompt, **options)
    assert size(slots_of(small_device)) == (1, 512)
    for probe in probes:
        assert small_device.complete(probe.prompt).token_ids == probe.token_ids


def test_a_text_that_finds_no_room_beside_another_fails_alone(small_device, refusal, probes):
    stream = small_device.stream(probes[0].prompt)
    pieces = [next(stream) for _ in range(3)]
    assert MENDS in refusal(MemoryError, small_device.complete, probes[1].prompt, max_new_tokens=400)
    assert "".join([*pieces, *stream]) == probes[0].text
    assert small_device.complete(probes[1].prompt).token_ids == probes[1].token_ids


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
        assert np.array_equal(binding.value("position_ids")[:, -1], binding.value("seqlens_k"))
        log, places = binding.value("token_log"), binding.value("log_indices")
        assert places.max() < len(log), "written beyond the log"
        self.real.run_with_iobinding(binding.real, options)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_texts_are_right_although_capturing_runs_more_than_once(faked, bundle, probes, precision):
    model, fake = faked(Capturing, precision=precision)
    plain = load(bundle, precision)
    for probe in (*probes, *probes[:2]):
        assert model.complete(probe.prompt) == plain.complete(probe.prompt)
    assert fake.plain <= len(probes) + 2  # the prompts
    assert fake.replays > 64


def test_each_slot_is_captured_once_and_its_buffers_stay_where_they_are(faked, probes):
    model, fake = faked(Capturing)
    for _ in range(2 * (MOST_KEPT + 1)):  # until all slots that texts alone take turns in have been used
        assert model.complete(probes[0].prompt).token_ids == probes[0].token_ids
    captures = len(fake.captures)
    assert captures <= 2 * (MOST_KEPT + 1)  # once more where memory grew
    for probe in (*probes, *probes, *probes):
        assert model.complete(probe.prompt).token_ids == probe.token_ids
    assert len(fake.captures) == captures


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
    assert 0 < len(fake.captures) < MOST_CAPTURES
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
        assert len(fake.captures) == number * len(probes)  # each text has a slot of its own


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
    assert 0 < len(fake.captures) <= MOST_CAPTURES


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

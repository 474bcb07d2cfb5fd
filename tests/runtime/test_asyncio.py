"""A model in asyncio: the event loop goes on, tasks share steps, and one that is cancelled leaves no trace."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import runtime
from runtime.graphs.slots import HostSlots


@pytest.fixture
def at_once(fresh, probes):
    """Completions of each probe, as many tokens as asked for, awaited at once."""

    async def gather(count, **options):
        return await asyncio.gather(*(fresh.acomplete(each.prompt, max_new_tokens=count, **options) for each in probes))

    return gather


def test_a_completion_is_what_the_caller_gets_without_asyncio(model, probe):
    found = asyncio.run(model.acomplete(probe.prompt, max_new_tokens=20))
    assert found == model.complete(probe.prompt, max_new_tokens=20)
    assert found.token_ids == probe.token_ids[:20]


def test_a_list_gives_a_list_in_its_order(model, probes):
    found = asyncio.run(model.acomplete([each.prompt for each in probes], batch_size=2, max_new_tokens=9))
    assert [each.token_ids for each in found] == [probe.token_ids[:9] for probe in probes]


def test_tasks_share_their_steps(at_once, probes, runs):
    found = asyncio.run(at_once(40, draft=False))
    assert [each.token_ids for each in found] == [probe.token_ids[:40] for probe in probes]
    assert len(runs) < 2 * 40 < len(probes) * 40


def test_more_tasks_than_the_executor_has_threads(fresh, probe):
    async def many():
        return await asyncio.gather(*(fresh.acomplete(probe.prompt, max_new_tokens=9) for _ in range(100)))

    assert {each.token_ids for each in asyncio.run(many())} == {probe.token_ids[:9]}


def test_the_event_loop_goes_on_meanwhile(model, probe):
    async def count_meanwhile():
        ticks, task = 0, asyncio.create_task(model.acomplete(probe.prompt, max_new_tokens=200, ignore_eos=True))
        while not task.done():
            await asyncio.sleep(0.001)
            ticks += 1
        return ticks

    assert asyncio.run(count_meanwhile()) > 10


def test_a_stream_gives_pieces_and_a_completion(model, probe):
    async def follow():
        stream = model.astream(probe.prompt, max_new_tokens=20)
        assert stream.completion is None
        pieces = [piece async for piece in stream]
        return pieces, stream.completion

    pieces, completion = asyncio.run(follow())
    assert all(pieces)
    assert len(pieces) > 5
    assert "".join(pieces) == completion.text
    assert completion.token_ids == probe.token_ids[:20]


def test_streams_and_completions_of_tasks_and_threads_at_once(fresh, probes):
    async def read(probe):
        return "".join([piece async for piece in fresh.astream(probe.prompt, max_new_tokens=30)])

    async def everything():
        return await asyncio.gather(
            *map(read, probes), *(fresh.acomplete(each.prompt, max_new_tokens=30) for each in probes)
        )

    with ThreadPoolExecutor(len(probes)) as pool:
        threads = [pool.submit(fresh.complete, probe.prompt, max_new_tokens=30) for probe in probes]
        found = asyncio.run(everything())
        others = [each.result(timeout=60) for each in threads]
    texts = [each.text for each in others]
    assert [each.token_ids for each in others] == [probe.token_ids[:30] for probe in probes]
    assert list(map(str, found)) == texts * 2


def test_a_cancelled_task_frees_its_slot_and_disturbs_nobody(fresh, probes):
    async def cancel_one():
        long = asyncio.create_task(fresh.acomplete(probes[0].prompt, max_new_tokens=400, ignore_eos=True))
        other = asyncio.create_task(fresh.acomplete(probes[1].prompt, max_new_tokens=30))
        await asyncio.sleep(0.02)
        long.cancel()
        with pytest.raises(asyncio.CancelledError):
            await long
        return await other

    assert asyncio.run(cancel_one()).token_ids == probes[1].token_ids[:30]
    assert not fresh.loop.busy


async def read(stream):
    return "".join([piece async for piece in stream])


@pytest.mark.parametrize("how", ["timeout", "aclose", "error"])
def test_a_stream_that_is_left_early_frees_its_slot(fresh, probe, how):
    async def leave():
        stream = fresh.astream(probe.prompt, max_new_tokens=400, ignore_eos=True)
        if how == "timeout":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(read(stream), 0.05)
        elif how == "error":
            with pytest.raises(KeyError):
                async with stream:
                    {}[await anext(stream)]
        else:
            async for _ in stream:
                break
            await stream.aclose()
        assert stream.completion is None

    asyncio.run(leave())
    assert not fresh.loop.busy
    assert fresh.complete(probe.prompt, max_new_tokens=9).token_ids == probe.token_ids[:9]


def test_nothing_is_left_running(fresh, at_once):
    before = threading.active_count()
    asyncio.run(at_once(20))
    assert threading.active_count() == before
    assert not fresh.loop.busy


def test_an_error_reaches_the_task_whose_it_is(fresh, probes, monkeypatch):
    run = HostSlots.run

    def failing(slots, works):
        if any(len(work.token_ids) == len(probes[1].prompt_ids) for work in works):
            raise MemoryError("no room")
        return run(slots, works)

    monkeypatch.setattr(HostSlots, "run", failing)

    async def both():
        tasks = [fresh.acomplete(probe.prompt, max_new_tokens=9) for probe in (probes[0], probes[1])]
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert len(probes[0].prompt_ids) != len(probes[1].prompt_ids)
    good, bad = asyncio.run(both())
    assert good.token_ids == probes[0].token_ids[:9]
    assert isinstance(bad, MemoryError)


@pytest.mark.parametrize(("kind", "prompt"), [(TypeError, 3), (TypeError, ["x", 3]), (ValueError, "\ud800")])
def test_what_is_no_prompt_is_refused(model, kind, prompt):
    with pytest.raises(kind, match="prompt"):
        asyncio.run(model.acomplete(prompt))
    if not isinstance(prompt, list):
        with pytest.raises(kind, match="prompt"):
            model.astream(prompt)


def test_one_model_serves_an_event_loop_after_another(fresh, probe):
    for _ in range(3):
        assert asyncio.run(fresh.acomplete(probe.prompt, max_new_tokens=5)).token_ids == probe.token_ids[:5]


def test_fewer_slots_than_tasks(bundle, probes):
    model = runtime.load(bundle, device="cpu", threads=1, slots=2, verify=False)

    async def everything():
        return await asyncio.gather(*(model.acomplete(each.prompt, max_new_tokens=20) for each in probes))

    assert [each.token_ids for each in asyncio.run(everything())] == [each.token_ids[:20] for each in probes]

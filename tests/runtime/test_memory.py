"""How many slots a model has, and the memory that they take and give back."""

import asyncio
import gc
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import runtime
import runtime.graphs.decode
import runtime.ort.host_memory
from runtime.bundle.bundle import open_bundle
from runtime.graphs.cache import KeyValueCache
from runtime.ort.host_memory import available_memory

GIB = 2**30


@pytest.fixture
def slot_bytes(manifest):
    """Of a text that fills the context, by hand: keys and values of each layer, in float32."""
    shape = manifest["architecture"]
    return shape["n_layer"] * 2 * shape["n_embd"] * shape["n_positions"] * 4


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine that says so much of its memory."""

    def make(available, limit=None, used=0):
        meminfo = tmp_path / "meminfo"
        meminfo.write_text(f"MemTotal:       99999999 kB\nMemAvailable:   {available // 1024} kB\n")
        monkeypatch.setattr(runtime.ort.host_memory, "MEMINFO", meminfo)
        groups = tmp_path / "memory.max", tmp_path / "memory.current"
        for path, value in zip(groups, ("max" if limit is None else limit, used), strict=True):
            path.write_text(f"{value}\n")
        monkeypatch.setattr(runtime.ort.host_memory, "CGROUPS", (groups,))

    return make


@pytest.mark.parametrize(
    ("available", "limit", "used", "left"),
    [(8 * GIB, None, 0, 8 * GIB), (8 * GIB, 3 * GIB, GIB, 2 * GIB), (GIB, 3 * GIB, 0, GIB), (GIB, GIB, 2 * GIB, 0)],
)
def test_what_is_left_is_the_least_of_system_and_container(machine, available, limit, used, left):
    machine(available, limit, used)
    assert available_memory() == left


def test_a_system_that_does_not_say_is_not_asked_again(monkeypatch, tmp_path, bundle):
    monkeypatch.setattr(runtime.ort.host_memory, "MEMINFO", tmp_path / "nothing")
    monkeypatch.setattr(runtime.ort.host_memory, "CGROUPS", ())
    assert available_memory() is None
    assert runtime.load(bundle, device="cpu", threads=1, verify=False).loop.slots == 1024


@pytest.mark.parametrize("texts", [1, 2, 7, 100])
def test_slots_fill_half_of_what_is_left(machine, bundle, slot_bytes, texts):
    machine(2 * texts * slot_bytes + slot_bytes // 2)
    assert runtime.load(bundle, device="cpu", threads=1, verify=False).loop.slots == texts


def test_there_is_a_slot_where_there_is_hardly_any_memory(machine, bundle, probe):
    machine(4096)
    model = runtime.load(bundle, device="cpu", threads=1, verify=False)
    assert model.loop.slots == 1
    made = model.complete([probe.prompt] * 3, max_new_tokens=5)
    assert {completion.token_ids for completion in made} == {probe.token_ids[:5]}


def test_more_slots_than_the_machine_can_hold_are_refused(machine, bundle, refusal, slot_bytes):
    machine(10 * slot_bytes + 4096)
    assert runtime.load(bundle, device="cpu", threads=1, verify=False, slots=10).loop.slots == 10
    message = refusal(MemoryError, runtime.load, bundle, device="cpu", threads=1, verify=False, slots=11)
    assert message.startswith("slots must be at most 10")
    assert "got 11" in message


@pytest.mark.parametrize(("kind", "slots"), [(ValueError, 0), (ValueError, 1025), (TypeError, 1.0), (TypeError, "8")])
def test_slots_out_of_their_range_are_refused(bundle, refusal, kind, slots):
    message = refusal(kind, runtime.load, bundle, slots=slots)
    assert message.startswith("slots must be")
    assert str(slots) in message


OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="this system shows no flags of what is mapped")
@pytest.mark.skipif(OVERCOMMIT.exists() and OVERCOMMIT.read_text().strip() == "2", reason="here all memory is reserved")
def test_memory_that_is_not_taken_is_not_reserved(bundle):
    """Or a process that has loaded several models could start no other: a fork would promise all of it once more."""
    opened = open_bundle(bundle, verify=False)
    cache = KeyValueCache(opened.manifest.architecture, 100)
    address, flags = cache.arrays[0].ctypes.data, None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if " " in line and "-" in line.split()[0]:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
        elif line.startswith("VmFlags") and start <= address < end:
            flags = line.split()[1:]
    assert "nr" in flags


def test_where_memory_is_promised_only_if_it_is_there_fewer_slots_are_made(machine, bundle, monkeypatch, slot_bytes):
    machine(128 * slot_bytes)
    make = runtime.graphs.decode.KeyValueCache

    def strict(architecture, rows, **settings):
        if rows > 10:
            raise OSError(12, "Cannot allocate memory")
        return make(architecture, rows, **settings)

    monkeypatch.setattr(runtime.graphs.decode, "KeyValueCache", strict)
    assert runtime.load(bundle, device="cpu", threads=1, verify=False).loop.slots == 4
    with pytest.raises(MemoryError, match="choose fewer slots"):
        runtime.load(bundle, device="cpu", threads=1, verify=False, slots=11)


def resident():
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return 4096 * int(file.read().split()[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere memory is counted otherwise")
def test_memory_is_taken_as_texts_grow_and_given_back_when_they_end(bundle, exactly, context, slot_bytes):
    model = runtime.load(bundle, device="cpu", threads=1, slots=64, verify=False, prefix_cache=False)
    model.complete("It was", max_new_tokens=2)
    before = resident()
    prompts = [exactly(context // 2)] * 12
    with ThreadPoolExecutor(1) as pool:
        growing = pool.submit(model.complete, prompts, max_new_tokens=context // 2, ignore_eos=True)
        most = 0
        while not growing.done():
            most = max(most, resident() - before)
    assert 8 * slot_bytes < most < 32 * slot_bytes  # of 64 slots; ONNX Runtime takes some too
    model.complete("It was", max_new_tokens=1)  # the next step gives back
    assert resident() - before < most / 3


def test_a_model_that_nobody_holds_is_freed_at_once(bundle, probes):
    """Not by the garbage collector, which may come in a forked child, where a session cannot be freed."""
    gc.collect()
    gc.disable()
    try:
        model = runtime.load(bundle, device="cpu", threads=1, verify=False)
        graph = weakref.ref(model.decode_graph)
        model.complete([probe.prompt for probe in probes], max_new_tokens=4)
        next(model.stream(probes[0].prompt, max_new_tokens=4))
        model.score(probes[0].prompt)
        asyncio.run(model.acomplete(probes[0].prompt, max_new_tokens=4))
        with model.session() as session:
            session.complete("It was", max_new_tokens=4)
        del model, session
        assert graph() is None
    finally:
        gc.enable()

"""What nothing breaks: memory that runs out, readers that fail, signals, a hundred loads, an exit in the midst of work.

Each is in a process of its own.
"""

import json
import signal
import subprocess
import sys
import textwrap

import pytest

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read from /proc")


@pytest.fixture
def run_script(run_python, bundle):
    """Run a script with the bundle as its argument; what it printed as JSON."""

    def run(script, *arguments):
        done = run_python("-c", textwrap.dedent(script), str(bundle), *arguments)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return json.loads(done.stdout)

    return run


# memory that runs out


LOWERED = """
    import json, resource, sys, threading
    import runtime

    model = runtime.load(sys.argv[1], device="cpu", threads=1)
    prompt = "It was"
    expected = model.complete(prompt, max_new_tokens=40).token_ids
    whole, errors = [model.complete(" the" * 200, max_new_tokens=20).token_ids], []

    def limit():  # no more than it has, of which 4 MB lie unused
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used, resource.RLIM_INFINITY))
        try:
            while True:
                taken.append(bytearray(2**20))
        except MemoryError:
            del taken[-4:]  # tokenizers, in Rust, aborts where a few kB cannot be had

    taken = []
    stream = model.stream(prompt, max_new_tokens=40)
    pieces = [next(stream)]
    with model.session() as session:
        session.complete(prompt, max_new_tokens=5)
        limit()
        for attempt in range(3):
            try:
                model.complete([" the" * 200 + " old" * n for n in range(16)], prompt_logprobs=3, max_new_tokens=20)
            except MemoryError as error:
                errors.append(str(error))
        try:
            session.complete(" the" * 200, max_new_tokens=20)
        except MemoryError as error:
            errors.append(str(error))
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        taken.clear()
        pieces += stream
        again = model.complete(prompt, max_new_tokens=40).token_ids
    print(json.dumps({
        "errors": errors,
        "same": again == expected,
        "streamed": stream.completion.token_ids == expected,
        "long": [model.complete(" the" * 200, max_new_tokens=20).token_ids] == whole,
    }))
"""


@LINUX
def test_a_limit_that_is_lowered_while_texts_are_generated_is_a_memory_error_and_the_model_goes_on(run_script):
    told = run_script(LOWERED)
    assert told["errors"], "there was memory enough, so that this proves nothing"
    assert all(len(error.splitlines()) <= 1 for error in told["errors"])
    assert (told["same"], told["streamed"], told["long"]) == (True, True, True)


# readers that fail


READER = """
    import asyncio, json, sys, threading
    import runtime

    model = runtime.load(sys.argv[1], device="cpu", threads=1, slots=4)
    expected = model.complete("It was", max_new_tokens=30).token_ids

    def fails():
        for piece in model.stream("It was", max_new_tokens=30):
            raise RuntimeError("the reader's own")

    async def fails_async():
        async for piece in model.astream("It was", max_new_tokens=30):
            raise RuntimeError("the reader's own")

    def processed(ids, logits):
        raise RuntimeError("the caller's own")

    seen, found = [], []

    def reads():
        found.append(model.complete("It was", max_new_tokens=30).token_ids == expected)

    for number in range(40):
        others = [threading.Thread(target=reads) for _ in range(2)]
        for other in others:
            other.start()
        for call in (fails, lambda: asyncio.run(fails_async()),
                     lambda: model.complete("It was", max_new_tokens=3, logits_processor=processed)):
            try:
                call()
            except RuntimeError as error:
                seen.append(str(error))
        for other in others:
            other.join()
    model.complete("It was", max_new_tokens=1)
    print(json.dumps({"seen": seen, "found": found, "busy": model.loop.busy}))
"""


def test_errors_of_readers_and_callers_are_theirs_alone(run_script):
    told = run_script(READER)
    assert told["seen"] == ["the reader's own", "the reader's own", "the caller's own"] * 40
    assert told["found"] == [True] * 80
    assert told["busy"] is False


# signals


INTERRUPTED = """
    import os, random, signal, sys, threading, time
    import runtime

    model = runtime.load(sys.argv[1], device="cpu", threads=1)
    expected = model.complete("It was", max_new_tokens=60).token_ids
    chosen, late = random.Random(int(sys.argv[2])), 0

    def interrupt(after):
        time.sleep(after)
        os.kill(os.getpid(), signal.SIGINT)

    for number in range(60):
        thread = threading.Thread(target=interrupt, args=(chosen.uniform(0, 0.05),))
        try:
            thread.start()
            while True:
                found = model.complete("It was", max_new_tokens=60).token_ids
                assert found == expected
        except KeyboardInterrupt:
            late += 1
        thread.join()
    assert model.complete("It was", max_new_tokens=60).token_ids == expected
    assert not model.loop.busy
    print(late)
"""


def test_interrupts_at_any_moment_leave_a_model_that_goes_on(run_script):
    assert run_script(INTERRUPTED, "7") == 60


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_command_in_the_midst_of_a_text_without_a_traceback(bundle, name):
    if not hasattr(signal, name):
        pytest.skip(f"no {name} here")
    number = getattr(signal, name)
    command = [sys.executable, "-m", "runtime", "complete", "It was", "--max-new-tokens", "200", "--ignore-eos"]
    process = subprocess.Popen(
        [*command, "--model", str(bundle), "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    try:
        process.stdout.read(1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    if name == "SIGINT":
        assert process.returncode in (0, 130)  # 0 if it had come to its end
        assert errors.decode().strip() in ("", "gpt2-onnx: interrupted")
    else:
        assert process.returncode in (0, -number)
        assert errors == b""


# a hundred loads


LOADS = """
    import gc, json, os, sys, time
    import runtime

    def held():
        gc.collect()
        time.sleep(0.5)  # threads that have ended are listed for a moment
        with open("/proc/self/statm") as statm:
            resident = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        with open("/proc/self/maps") as maps:
            weights = sum("onnx_data" in line for line in maps)
        return {
            "resident": resident,
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
            "mapped": weights,
        }

    told = []
    for number in range(101):
        model = runtime.load(sys.argv[1], device="cpu", threads=2, verify=number % 2 == 0)
        model.complete("It was", max_new_tokens=2)
        if number % 10 == 0:
            model.inspect("It was")
        del model
        if number in (20, 100):
            told.append(held())
    print(json.dumps(told))
"""


@LINUX
def test_a_hundred_loads_leave_neither_memory_nor_descriptors_nor_threads(run_script):
    warm, end = run_script(LOADS)
    assert (end["descriptors"], end["threads"], end["mapped"]) == (warm["descriptors"], warm["threads"], 0)
    growth = end["resident"] - warm["resident"]
    assert growth < 8 * 2**20, f"{growth / 2**20:.1f} MB more after 80 loads"


REFUSED = """
    import gc, json, os, shutil, sys, time
    from pathlib import Path
    import runtime

    folder = Path(sys.argv[2]) / "damaged"
    shutil.copytree(sys.argv[1], folder)
    path = folder / "onnx" / "model.onnx_data"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    def held():
        gc.collect()
        time.sleep(0.5)  # threads that have ended are listed for a moment
        return [len(os.listdir(f"/proc/self/{what}")) for what in ("fd", "task")]

    told = []
    for number in range(22):
        try:
            runtime.load(folder, device="cpu", threads=2)
        except runtime.BundleError as error:
            assert str(path) in str(error), error
        if number in (1, 21):
            told.append(held())
    print(json.dumps(told))
"""


@LINUX
def test_loads_that_are_refused_leave_neither_descriptors_nor_threads(run_script, tmp_path):
    warm, end = run_script(REFUSED, str(tmp_path))
    assert warm == end


# an exit in the midst of work


EXIT = """
    import asyncio, sys, threading, time
    import runtime

    how = sys.argv[2]
    model = runtime.load(sys.argv[1], device="cpu", threads=2)
    options = {"max_new_tokens": 100, "ignore_eos": True}

    def works():
        while True:
            model.complete("It was", **options)

    def streams():
        while True:
            for piece in model.stream("It was", **options):
                pass

    if how == "threads":
        for target in (works, works, streams):
            threading.Thread(target=target, daemon=True).start()
        time.sleep(0.5)
    elif how == "stream":
        kept = model.stream("It was", **options)
        next(kept)
    elif how == "session":
        kept = model.session()
        kept.__enter__()
        kept.complete("It was", max_new_tokens=3)
    elif how == "asyncio":
        async def begin():
            tasks = [asyncio.ensure_future(model.acomplete("It was", **options)) for _ in range(3)]
            await asyncio.sleep(0.2)
        asyncio.run(begin())
    elif how == "inspector":
        def looks():
            while True:
                model.inspect("It was")
        threading.Thread(target=looks, daemon=True).start()
        time.sleep(0.5)
    elif how == "loading":
        def loads():
            while True:
                runtime.load(sys.argv[1], device="cpu", threads=2)
        threading.Thread(target=loads, daemon=True).start()
        time.sleep(0.5)
    elif how == "error":
        threading.Thread(target=works, daemon=True).start()
        time.sleep(0.3)
        sys.exit(7)
    print("ended", flush=True)
"""


@pytest.mark.parametrize("how", ["threads", "stream", "session", "asyncio", "inspector", "loading", "error"])
def test_an_interpreter_exits_in_the_midst_of_work(run_python, bundle, how):
    """Neither aborts nor hangs: ONNX Runtime's threads are still at work when Python's modules are taken down."""
    for _ in range(2):
        done = run_python("-c", textwrap.dedent(EXIT), str(bundle), how)
        assert done.returncode == (7 if how == "error" else 0), done.stderr
        assert done.stderr == ""
        assert done.stdout == ("" if how == "error" else "ended\n")

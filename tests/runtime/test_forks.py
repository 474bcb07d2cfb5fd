"""Processes that fork, spawn and pickle: a model works there, or says in one line what to do."""

import copy
import json
import os
import pickle
import textwrap

import pytest
from fakes import SERVED

import runtime
from runtime import BundleError

pytestmark = pytest.mark.all_cpus
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

BEGIN = """
    import faulthandler, json, os, signal, sys, threading, warnings
    import runtime

    warnings.simplefilter("ignore", DeprecationWarning)  # of forking where there are threads
    faulthandler.register(signal.SIGALRM, chain=True)
    folder, prompt = sys.argv[1:3]

    def in_child(call, seconds=120):
        '''What `call` gives in a process that is forked off; ends with the stacks of all threads if it hangs.'''
        reading, writing = os.pipe()
        if not (child := os.fork()):
            signal.alarm(seconds)
            try:
                answer = call()
            except Exception as error:
                answer = f"{type(error).__name__}: {error}"
            os.write(writing, json.dumps(answer).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            answer = pipe.read()
        assert os.waitpid(child, 0)[1] == 0
        return json.loads(answer)
"""


@pytest.fixture
def forking(run_python, bundle, probe):
    """What a script prints as JSON; `in_child` forks there, and anything on stderr fails the test."""

    def run(script, folder=bundle):
        begin = textwrap.dedent(BEGIN) + textwrap.dedent(script)
        done = run_python("-c", begin, str(folder), probe.prompt)
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    return run


@needs_fork
def test_children_work_whatever_the_parents_threads_are_about(forking, probe):
    found = forking("""
        model = runtime.load(folder, device="cpu", threads=2)
        stop = threading.Event()

        def generate():
            while not stop.is_set():
                model.complete(prompt, max_new_tokens=40)

        def replace():
            while not stop.is_set():
                runtime.api._loaded.clear()
                runtime.complete(prompt, model=folder, device="cpu", max_new_tokens=2)

        threads = [threading.Thread(target=work) for work in [generate] * 4 + [replace]]
        for thread in threads:
            thread.start()
        answers = [in_child(lambda: model.complete(prompt, max_new_tokens=20).token_ids) for _ in range(20)]
        kept = lambda: runtime.complete(prompt, model=folder, device="cpu", max_new_tokens=20).token_ids
        answers += [in_child(kept) for _ in range(10)]
        stop.set()
        for thread in threads:
            thread.join()
        print(json.dumps(answers))
    """)
    assert found == [list(probe.token_ids[:20])] * 30


@needs_fork
def test_a_child_may_come_while_a_model_is_loaded(forking, probe):
    found = forking("""
        model = runtime.load(folder, device="cpu", threads=1)
        stop = threading.Event()

        def load():
            while not stop.is_set():
                runtime.load(folder, device="cpu", threads=1).inspect("It was")

        thread = threading.Thread(target=load)
        thread.start()
        answers = [in_child(lambda: model.complete(prompt, max_new_tokens=5).token_ids) for _ in range(6)]
        stop.set()
        thread.join()
        print(json.dumps(answers))
    """)
    assert found == [list(probe.token_ids[:5])] * 6


@needs_fork
def test_every_call_works_in_a_child_and_in_a_child_of_a_child(forking, probe):
    parents, childs, grandchilds = forking("""
        model = runtime.load(folder, device="cpu")

        def everything():
            with model.session() as session:
                turns = [session.complete(prompt, max_new_tokens=4).text, session.complete(max_new_tokens=4).text]
            return [
                model.complete([prompt, ""], max_new_tokens=9)[0].token_ids,
                "".join(model.stream(prompt, max_new_tokens=9)),
                turns,
                model.score(prompt).logprobs,
                model.inspect(prompt).logits[-1, :3].tolist(),
                model.lens(prompt, k=2).top_ids.tolist(),
                model.decode(model.encode(prompt)),
            ]

        print(json.dumps([everything(), in_child(everything), in_child(lambda: in_child(everything))]))
    """)
    assert parents == childs == grandchilds
    assert parents[0] == list(probe.token_ids[:9])


@needs_fork
def test_what_is_under_way_stays_with_the_parent(forking, probe):
    found = forking("""
        model = runtime.load(folder, device="cpu", threads=1)
        session = model.session()
        session.complete(prompt, max_new_tokens=8)
        stream = model.stream(prompt, max_new_tokens=20)
        first = next(stream)

        def told(call):
            try:
                call()
            except RuntimeError as error:
                return str(error)

        def tried():
            seen = [told(lambda: session.complete("More")), told(lambda: session.rewind(1)), told(lambda: next(stream))]
            session.close(), stream.close()
            return seen + [session.text, model.complete(prompt, max_new_tokens=8).text]

        seen = in_child(tried)
        rest = session.complete(max_new_tokens=12)
        print(json.dumps([seen, first + "".join(stream), list(session.token_ids)]))
    """)
    (*refused, text, completed), streamed, ids = found
    assert len(refused) == 3
    for message in refused[:2]:
        assert message.endswith(
            "belongs to the parent process, which forked this one; make one here: model.session()"
        ), message
    assert refused[2].endswith("belongs to the parent process, which forked this one; make one here: model.stream(…)")
    assert text == probe.prompt + completed
    assert streamed == completed + streamed[len(completed) :]
    assert ids == [*probe.prompt_ids, *probe.token_ids[:20]]


@needs_fork
def test_a_child_whose_bundle_is_another_by_now_is_told(forking, bundle_copy):
    assert "was replaced since" in forking(
        """
        from pathlib import Path

        model = runtime.load(folder, device="cpu", threads=1)
        weights = Path(folder, "onnx", "model.onnx_data")
        content = weights.read_bytes()
        weights.unlink()
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        print(json.dumps(in_child(lambda: model.complete(prompt, max_new_tokens=2).text)))
        """,
        bundle_copy.folder,
    )


POOLS = """
    import json, multiprocessing, sys, warnings
    from concurrent.futures import ProcessPoolExecutor
    import runtime

    def complete(model, prompt):
        return list(model.complete(prompt, max_new_tokens=8).token_ids)

    def loads(model, prompt):
        '''Whether every task of a process has the same model.'''
        global last
        last = globals().get("last") or model
        return last is model

    if __name__ == "__main__":
        warnings.simplefilter("ignore", DeprecationWarning)
        folder, prompt, method = sys.argv[1:4]
        model = runtime.load(folder, device="cpu", threads=1)
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
            answers = list(pool.map(complete, [model] * 6, [prompt] * 6, timeout=120))
            kept = list(pool.map(loads, [model] * 6, [prompt] * 6, timeout=120))
        print(json.dumps([answers, kept]))
"""


@pytest.mark.parametrize("method", ["spawn", pytest.param("forkserver", marks=needs_fork), "fork"])
def test_pools_get_a_model_that_loads_itself(run_python, bundle, probe, tmp_path, method):
    if method == "fork" and not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    script = tmp_path / "pools.py"
    script.write_text(textwrap.dedent(POOLS), encoding="utf-8")
    done = run_python(str(script), str(bundle), probe.prompt, method)
    assert (done.returncode, done.stderr) == (0, "")
    answers, kept = json.loads(done.stdout)
    assert answers == [list(probe.token_ids[:8])] * 6
    assert all(kept)


def test_a_pickled_model_is_its_address(fresh):
    pickled = pickle.dumps(fresh)
    assert len(pickled) < 50_000  # and no weights
    assert pickle.loads(pickled) is fresh
    assert copy.copy(fresh) is copy.deepcopy(fresh) is fresh


def test_a_pickled_model_is_loaded_as_it_was(bundle, run_python, tmp_path):
    loaded = runtime.load(bundle, precision="fp16", device="cpu", threads=1)
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(loaded))
    script = "import pickle, sys; model = pickle.load(open(sys.argv[1], 'rb')); print(model, model.loading.threads)"
    done = run_python("-c", script, str(tmp_path / "model.pickle"))
    assert done.stdout.strip() == f"<Model {bundle} in fp16 on cpu> 1", done.stderr


def test_a_pickled_model_whose_bundle_is_gone_or_another(bundle_copy, refusal, tmp_path):
    loaded = runtime.load(bundle_copy.folder, device="cpu", threads=1)
    pickled = pickle.dumps(loaded)
    del loaded
    runtime.model.pickled._unpickler._last = None
    bundle_copy.flip_byte(SERVED)
    assert "was replaced since" in refusal(BundleError, pickle.loads, pickled)
    bundle_copy.folder.rename(tmp_path / "moved")
    message = refusal(BundleError, pickle.loads, pickled)
    assert "is gone since" in message
    assert f"runtime.load('{bundle_copy.folder}')" in message


def test_what_is_under_way_cannot_be_pickled(model, probe, refusal):
    with model.session() as session, model.stream(probe.prompt, max_new_tokens=4) as stream:
        assert "session.text" in refusal(TypeError, pickle.dumps, session)
        assert "a stream cannot be pickled" in refusal(TypeError, pickle.dumps, stream)

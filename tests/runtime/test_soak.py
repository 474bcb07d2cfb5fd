"""Memory: a batch takes what its tokens need, and ten thousand short completions in eight threads leave none behind."""

import json
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.all_cpus

STATM = Path("/proc/self/statm")
MOST_GROWTH = 8 * 2**20

# each in a process of its own, where nobody else's memory is counted
WIDE = """
    import sys
    import runtime

    def most_resident():
        lines = dict(line.split(":") for line in open("/proc/self/status"))
        return int(lines["VmHWM"].split()[0]) * 1024

    model = runtime.load(sys.argv[1], threads=1, verify=False)
    model.complete("It was", max_new_tokens=2)
    before = most_resident()
    model.complete(["It was"] * 64, batch_size=64, max_new_tokens=20)
    print(most_resident() - before)
"""
SOAK = """
    import gc, json, os, sys
    from concurrent.futures import ThreadPoolExecutor

    import runtime

    PROMPTS = ["It was", "The old house stood at the end of the lane, and", "", "He opened the letter", "Why", "😀é"]
    model = runtime.load(sys.argv[1], threads=1, verify=False)

    def greedy(prompt, n):
        model.complete(prompt, max_new_tokens=1 + n % 3)
        return 1

    def sampled(prompt, n):
        options = dict(temperature=1.2, top_k=40, top_p=0.9, min_p=0.01, repetition_penalty=1.1, seed=n)
        model.complete(prompt, max_new_tokens=1 + n % 3, stop=["the"], logprobs=n % 3, **options)
        return 1

    def batch(prompt, n):
        return len(model.complete([prompt, *PROMPTS, "And"], batch_size=1 + n % 8, seed=n, max_new_tokens=2))

    def closed_early(prompt, n):
        with model.stream(prompt, max_new_tokens=20) as stream:
            next(stream, None)
        return 1

    def left_lying(prompt, n):
        next(model.stream(prompt, max_new_tokens=20), None)
        return 1

    def refused(prompt, n):
        try:
            model.complete(prompt, max_new_tokens=0)
        except ValueError:
            return 0

    def talk(prompt, n):
        with model.session() as session:
            session.complete(prompt, max_new_tokens=2)
            session.rewind(1)
            session.complete(" Then", max_new_tokens=1, seed=n)
        return 2

    KINDS = [greedy, sampled, batch, closed_early, left_lying, refused, talk]

    def run(n):
        return KINDS[n % len(KINDS)](PROMPTS[n // len(KINDS) % len(PROMPTS)], n)

    def resident():
        gc.collect()
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    done, n = 0, 0
    with ThreadPoolExecutor(8) as pool:
        for goal in (2_000, 10_000):
            while done < goal:
                done += sum(pool.map(run, range(n, n + 100)))
                n += 100
            print(json.dumps({"completions": done, "resident": resident()}), flush=True)
"""


pytestmark = pytest.mark.skipif(not STATM.exists(), reason=f"no {STATM} here to tell how much memory a process holds")


def run(run_python, script, bundle):
    done = run_python("-c", textwrap.dedent(script), str(bundle))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_batch_takes_memory_for_the_tokens_that_it_has_and_not_for_the_whole_context(run_python, bundle, manifest):
    shape = manifest["architecture"]
    token = 2 * shape["n_layer"] * shape["n_embd"] * 4
    (taken,) = run(run_python, WIDE, bundle)
    assert taken < 64 * shape["n_positions"] * token / 4, f"{taken / 2**20:.0f} MB for 64 rows of 22 tokens"


@pytest.mark.wide
def test_ten_thousand_completions_keep_no_memory(run_python, bundle):
    warm, end = run(run_python, SOAK, bundle)
    assert end["completions"] >= 10_000
    growth = end["resident"] - warm["resident"]
    assert growth < MOST_GROWTH, f"{growth / 2**20:.1f} MB more than after {warm['completions']:,} completions"

"""A process that calls a model in one of several ways and says how long that took, for `benchmarks.serving`.

    python benchmarks/callers.py BUNDLE PRECISION THREADS

It imports nothing but the `runtime` that PYTHONPATH leads to, so that two checkouts can take turns. A line in is a way,
as JSON; a line out is {"tokens": how many were made, "seconds": in how long}. Prompts differ from turn to turn.
"""

import inspect
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count as numbers
from typing import Any

import runtime

TEXT = (
    "it is a truth universally acknowledged that single man in possession of good fortune must be want wife however "
    "little known the feelings or views such may on his first entering neighbourhood this so well fixed minds"
)
OPTIONS: dict[str, Any] = {"ignore_eos": True, "draft": False}


def main() -> None:
    bundle, precision, threads = sys.argv[1:]
    unshared: dict[str, Any] = (
        {"prefix_cache": False} if "prefix_cache" in inspect.signature(runtime.load).parameters else {}
    )
    model = runtime.load(bundle, precision=precision, device="cpu", threads=int(threads), **unshared)
    for turn, line in zip(numbers(), sys.stdin, strict=False):
        work = WAYS[json.loads(line)]
        started = time.perf_counter()
        tokens = sum(len(completion.token_ids) for completion in work(model, random.Random(turn)))
        print(json.dumps({"tokens": tokens, "seconds": time.perf_counter() - started}), flush=True)


def one(model: runtime.Model, chance: random.Random) -> Iterator[runtime.Completion]:
    """A text alone."""
    yield model.complete(text(chance, 20), max_new_tokens=96, **OPTIONS)


def eight_threads(model: runtime.Model, chance: random.Random) -> list[runtime.Completion]:
    """Eight threads with a prompt each."""
    prompts = [text(chance, 12 + 4 * thread) for thread in range(8)]
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda prompt: model.complete(prompt, max_new_tokens=64, **OPTIONS), prompts))


def batch(model: runtime.Model, chance: random.Random) -> list[runtime.Completion]:
    """Sixteen prompts of a list."""
    prompts = [text(chance, 12 + 5 * row) for row in range(16)]
    return model.complete(prompts, batch_size=16, max_new_tokens=64, **OPTIONS)


def text(chance: random.Random, count: int) -> str:
    words = TEXT.split()
    return " ".join(chance.choice(words) for _ in range(count))


WAYS: dict[str, Callable[..., Any]] = {"a text alone": one, "eight threads": eight_threads, "a list of 16": batch}

if __name__ == "__main__":
    main()

"""This runtime's engine without HTTP: `python -m benchmarks.serve.engine_side BUNDLE PRECISION THREADS SLOTS`.

A line of JSON in, a line out, as `benchmarks.serve.sides` asks: callers are threads that stream, each as a service that
imports `runtime` would.
"""

import json
import sys
import threading
from collections.abc import Iterator
from time import perf_counter, sleep
from typing import Any

import runtime


def main() -> None:
    bundle, precision, threads, slots = sys.argv[1:]
    model = runtime.load(bundle, precision=precision, threads=int(threads), slots=int(slots), device="cpu")
    for line in sys.stdin:
        task = json.loads(line)
        print(json.dumps({"outcomes": run(model, task["requests"], task["callers"])}), flush=True)


def run(model: runtime.Model, requests: list[dict[str, Any]], callers: int | None) -> list[dict[str, Any]]:
    """By so many callers, or each request by a thread of its own, when it arrives."""
    began, outcomes, left = perf_counter(), list[dict[str, Any]](), iter(requests)
    taking = threading.Lock()

    def taken() -> Iterator[dict[str, Any]]:
        while True:
            with taking:
                asked = next(left, None)
            if asked is None:
                return
            yield asked

    def caller(own: Iterator[dict[str, Any]]) -> None:
        for asked in own:
            outcomes.append(outcome(model, asked, began))

    def arriving(asked: dict[str, Any]) -> None:
        sleep(max(0.0, asked["at"] - (perf_counter() - began)))
        outcomes.append(outcome(model, asked, began))

    works = [(caller, taken()) for _ in range(callers)] if callers else [(arriving, asked) for asked in requests]
    running = [threading.Thread(target=work, args=(argument,)) for work, argument in works]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return outcomes


def outcome(model: runtime.Model, asked: dict[str, Any], began: float) -> dict[str, Any]:
    arrived, pieces = perf_counter() - began, list[float]()
    options: Any = {"max_new_tokens": asked["new_tokens"], "temperature": 1.0, "seed": asked["seed"]}
    with model.stream(model.decode(asked["ids"]), ignore_eos=True, **options) as stream:
        for _ in stream:
            pieces.append(perf_counter() - began - arrived)
    return {"status": 200, "arrived": arrived, "pieces": pieces, "tokens": asked["new_tokens"]}


if __name__ == "__main__":
    main()

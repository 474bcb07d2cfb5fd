"""OpenVINO GenAI's continuous batching: `python -m benchmarks.serve.genai_side FOLDER PRECISION THREADS`, in its own
environment. A line of JSON in, a line out, as `benchmarks.serve.sides` asks."""

import json
import sys
from time import perf_counter
from typing import Any

from benchmarks.peers.sides import protocol
from benchmarks.peers.sides.genai_side import loaded


def main() -> None:
    answers = protocol.answer_channel()
    folder, precision, threads = sys.argv[1:]
    pipeline = loaded(folder, precision, int(threads))
    for line in sys.stdin:
        task = json.loads(line)
        protocol.tell(answers, {"outcomes": run(pipeline, task["requests"], task["callers"])})


def run(pipeline: Any, requests: list[dict[str, Any]], callers: int | None) -> list[dict[str, Any]]:
    """Step the pipeline; each request is added when it arrives, or when a caller is free."""
    import numpy
    import openvino

    began, left, running, done = perf_counter(), list(enumerate(requests)), list[Any](), list[dict[str, Any]]()
    while left or running:
        now = perf_counter() - began
        while left and (len(running) < callers if callers else left[0][1]["at"] <= now):
            number, asked = left.pop(0)
            handle = pipeline.add_request(number, openvino.Tensor(numpy.array([asked["ids"]])), sampling(asked))
            outcome: dict[str, Any] = {
                "status": 200,
                "arrived": now if callers else asked["at"],
                "pieces": [],
                "tokens": 0,
            }
            running.append((handle, outcome, asked["new_tokens"]))
        if running:
            pipeline.step()
        now = perf_counter() - began
        for handle, outcome, _ in running:
            while handle.can_read():
                said = sum(len(output.generated_ids) for output in handle.read().values())
                outcome["pieces"].append(now - outcome["arrived"])
                outcome["tokens"] += said
        done += [outcome for _, outcome, wanted in running if outcome["tokens"] >= wanted]
        running = [each for each in running if each[1]["tokens"] < each[2]]
    return done


def sampling(asked: dict[str, Any]) -> Any:
    import openvino_genai

    return openvino_genai.GenerationConfig(
        max_new_tokens=asked["new_tokens"], ignore_eos=True, do_sample=True, temperature=1.0, rng_seed=asked["seed"]
    )


if __name__ == "__main__":
    main()

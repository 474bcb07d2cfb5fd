"""This runtime beside its peers: speed, cold start, memory and size, of one checkpoint, in one run.

    python benchmarks/peers.py                              # a seeded GPT-2 small, every peer and every precision
    python benchmarks/peers.py --peers llama.cpp --precisions int4 --json results.json --chart speed.svg
    python benchmarks/peers.py --report results.json        # the tables again (and --chart), without measuring

Every side has the same threads, a process of its own, and an environment of its own in build/benchmarks/env; sides take
turns, A B C A B C …, and a ratio is that of the pairs of one round. What is measured, in token ids, greedily, past any
end of text:

- decode: tokens a second after the first, batch 1: (tokens - 1) over the seconds that a call for all of them takes
  longer than a call for one.
- share of the limit: decode's speed, times the bytes of weights that a token reads, over the memory's bandwidth. Those
  are the stored bytes of all weights but the position embeddings, the token embeddings once. (Over 100 % is a model
  that stays in a cache.)
- prefill: milliseconds from 512 tokens, or what the context leaves, to the next one.
- batch: 8 prompts of 16 to 128 tokens, 64 new ones each; tokens a second of the whole call.
- cold start: seconds from the start of a process to its first token on a pipe, with text as the prompt; and the most
  memory that this process has had (mapped weights count once they are read).
- files: bytes of all that the side needs to serve.

What cannot be installed or run is told with its reason, and the others go on.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from contestants import HERE, OURS, PRECISIONS, Side, release, requirements, sides_of
from environments import python_of
from figures import processor
from measuring import measure, measure_bandwidth
from peer_options import check_checkpoint, check_output, make_parser, stored
from preparing import make_ready
from processes import SideError
from seeded import WORK, exported, seeded_checkpoint
from tables import print_report
from tasks import make_tasks


def main() -> None:
    parser = make_parser(__doc__.splitlines()[0])
    options = parser.parse_args()
    check_output(parser, options)
    report = stored(parser, options.report) if options.report else measured(parser, options)
    for path in [options.json] if options.report else [options.json, WORK / "peers.json"]:
        if path:
            path.write_text(json.dumps(report, indent=2) + "\n")
    print_report(report)
    if options.chart:
        draw(report, options.chart)


def measured(parser: argparse.ArgumentParser, options: argparse.Namespace) -> dict[str, Any]:
    checkpoint = options.checkpoint or seeded_checkpoint("small")
    context = check_checkpoint(parser, checkpoint, options)
    precisions = [one for one in PRECISIONS if one == "fp32" or one in options.precisions]
    bundle = exported(checkpoint, precisions)
    sides = sides_of(options.peers, options.precisions)
    report = describe(sides, options, checkpoint.resolve().name)
    ready, failed = make_ready(sides, checkpoint, bundle, options.threads)
    tasks = make_tasks(bundle, context, options.prompt, options.tokens)
    report["bandwidth"] = measure_bandwidth(options.threads)
    results = measure(ready, tasks, options.threads, options.rounds)
    for name, reason in failed.items():
        results[name] = {"values": {}, "same_tokens": {}, "failed": {"prepare": reason}}
    for name, side in report["sides"].items():
        side |= results[name]
    return report


def describe(sides: list[Side], options: argparse.Namespace, checkpoint: str) -> dict[str, Any]:
    """What is measured, and on what, before it is: the sides in their order."""
    chosen = {name: getattr(options, name) for name in ("threads", "prompt", "tokens", "rounds")}
    releases = [release(contestant) for contestant in dict.fromkeys(side.contestant for side in sides)]
    return {
        "title": f"{checkpoint}: {options.prompt} tokens and {options.tokens} greedy ones after them, "
        f"{options.threads} thread{'s' if options.threads > 1 else ''}, {options.rounds} rounds",
        "machine": ", ".join([processor(), *releases]),
        "options": {"checkpoint": checkpoint, **chosen},
        "sides": {
            side.name: {"contestant": side.contestant, "precision": side.precision, "label": side.label}
            for side in sides
        },
    }


def draw(report: dict[str, Any], path: Path) -> None:
    """By matplotlib, which has an environment of its own too."""
    try:
        python = python_of(requirements("chart"))
    except SideError as error:
        sys.exit(f"peers.py: no chart: {error}")
    subprocess.run([python, HERE / "chart.py", OURS, path.resolve()], input=json.dumps(report), text=True, check=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)

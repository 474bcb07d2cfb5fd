"""This runtime beside its peers: speed, cold start, memory and size, of one checkpoint, in one run.

    python -m benchmarks.peers                              # a seeded GPT-2 small, every peer and every precision
    python -m benchmarks.peers --peers llama.cpp --precisions int4 --json results.json --chart speed.svg
    python -m benchmarks.peers --peers transformers "OpenVINO GenAI" --rows 16  # many texts at once
    python -m benchmarks.peers --report results.json        # the tables again (and --chart), without measuring

Every side has the same threads, a process of its own, and an environment of its own in build/benchmarks/env; sides take
turns, A B C A B C …, and a ratio is that of the pairs of one round. What is measured, in token ids, greedily, past any
end of text:

- decode: tokens a second after the first, batch 1: (tokens - 1) over the seconds that a call for all of them takes
  longer than a call for one.
- share of the limit: decode's speed, times the bytes of weights that a token reads, over the memory's bandwidth. Those
  are the stored bytes of all weights but the position embeddings, the token embeddings once. (Over 100 % is a model
  that stays in a cache.)
- prefill: milliseconds from 512 tokens, or what the context leaves, to the next one.
- batch: --rows prompts (8) of 16 to 128 tokens, 64 new ones each; tokens a second of the whole call.
- cold start: seconds from the start of a process to its first token on a pipe, with text as the prompt; and the most
  memory that this process has had (mapped weights count once they are read).
- files: bytes of all that the side needs to serve.

What cannot be installed or run is told with its reason, and the others go on. Environments, the export and the peers'
conversions are kept in build/benchmarks until what they were made from changes; --fresh makes them anew.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common.kept import ROOT, WORK, exported, seeded_checkpoint
from benchmarks.common.study import PRECISIONS, OneLineParser, count, number_from, processor, remark
from benchmarks.common.turns import SideError
from benchmarks.peers.contestants import OURS, PEERS, Side, release, requirements, sides_of
from benchmarks.peers.measuring import BATCH_TOKENS, make_tasks, measure, measure_bandwidth
from benchmarks.peers.preparing import make_ready, note_rounds, plan_work, python_of
from benchmarks.peers.tables import print_report


def main() -> None:
    parser = make_parser(__doc__)
    options = parser.parse_args()
    check_output(parser, options)
    report = stored(parser, options.report) if options.report else measured(parser, options)
    for path in [options.json] if options.report else [options.json, WORK / "peers.json"]:
        if path:
            path.write_text(json.dumps(report, indent=2) + "\n")
    print_report(report)
    if options.chart:
        draw(report, options.chart)


def make_parser(docstring: str | None) -> OneLineParser:
    parser = OneLineParser("python -m benchmarks.peers", docstring)
    parser.add_checkpoint()
    parser.add_argument("--peers", nargs="+", type=peer_named, default=PEERS, metavar="PEER", help=", ".join(PEERS))
    parser.add_precisions()
    parser.add_threads()
    parser.add_argument("--prompt", type=count, default=64, help="tokens before decoding (default: 64)")
    parser.add_argument("--tokens", type=tokens, default=128, help="tokens to decode (default: 128)")
    parser.add_argument("--rows", type=several, default=8, help="prompts of a batch (default: 8)")
    parser.add_rounds(5)
    parser.add_argument("--fresh", action="store_true", help="environments, exports and conversions are all made anew")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything that was measured")
    parser.add_argument("--chart", type=Path, metavar="FILE.svg", help="a chart of the decoding speeds")
    parser.add_argument("--report", type=Path, metavar="FILE", help="what --json wrote; nothing is measured")
    return parser


def tokens(text: str) -> int:
    return number_from(8, text)


def several(text: str) -> int:
    return number_from(2, text)


def peer_named(text: str) -> str:
    for peer in PEERS:
        if peer.lower() == text.lower():
            return peer
    raise argparse.ArgumentTypeError(f"there is no {text!r}; there are: {', '.join(PEERS)}")


def check_output(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Before an hour of measuring, not after it."""
    for path in filter(None, (options.json, options.chart)):
        if not path.resolve().parent.is_dir():
            parser.error(f"there is no folder {path.parent}")
    if options.chart and options.chart.suffix != ".svg":
        parser.error(f"argument --chart: must end in .svg, got {str(options.chart)!r}")


def stored(parser: argparse.ArgumentParser, path: Path) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads(path.read_text())
        report["sides"], report["title"], report["machine"], report["bandwidth"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not what --json wrote"
        parser.error(f"argument --report: {path}: {reason}")
    return report


def check_checkpoint(parser: argparse.ArgumentParser, checkpoint: Path, options: argparse.Namespace) -> int:
    """Its context, in which all that is asked for has room."""
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (checkpoint / name).is_file():
            parser.error(f"no checkpoint at {checkpoint}: there is no {name}")
    context = int(json.loads((checkpoint / "config.json").read_text())["n_positions"])
    if max(options.prompt + options.tokens, BATCH_TOKENS + 1) > context:
        parser.error(f"{options.prompt} tokens and {options.tokens} new ones do not fit the context of {context}")
    return context


def measured(parser: argparse.ArgumentParser, options: argparse.Namespace) -> dict[str, Any]:
    precisions = [one for one in PRECISIONS if one == "fp32" or one in options.precisions]
    sides = sides_of(options.peers, options.precisions)
    if options.checkpoint:
        check_checkpoint(parser, options.checkpoint, options)
    work = plan_work(options.checkpoint, sides, precisions, options)
    remark(f"{parser.prog}: {work.line()}")
    checkpoint = options.checkpoint or seeded_checkpoint("small")
    context = check_checkpoint(parser, checkpoint, options)
    bundle = exported(checkpoint, precisions)
    report = describe(sides, options, checkpoint.resolve().name)
    ready, failed = make_ready(sides, checkpoint, bundle, options.threads)
    tasks = make_tasks(bundle, context, options.prompt, options.tokens, options.rows)
    report["bandwidth"] = measure_bandwidth(options.threads)
    results = measure(ready, tasks, options.threads, options.rounds)
    for name, reason in failed.items():
        results[name] = {"values": {}, "same_tokens": {}, "failed": {"prepare": reason}}
    note_rounds(work, results)
    for name, side in report["sides"].items():
        side |= results[name]
    return report


def describe(sides: list[Side], options: argparse.Namespace, checkpoint: str) -> dict[str, Any]:
    """What is measured, and on what, before it is: the sides in their order."""
    chosen = {name: getattr(options, name) for name in ("threads", "prompt", "tokens", "rows", "rounds")}
    threads = f"{options.threads} thread{'s' if options.threads > 1 else ''}"
    releases = [release(contestant) for contestant in dict.fromkeys(side.contestant for side in sides)]
    return {
        "title": f"{checkpoint}: {options.prompt} tokens and {options.tokens} greedy ones after them, "
        f"batches of {options.rows}, {threads}, {options.rounds} rounds",
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
        sys.exit(f"no chart: {error}")
    command = [python, "-m", "benchmarks.peers.chart", OURS, path.resolve()]
    subprocess.run([str(part) for part in command], input=json.dumps(report), text=True, check=True, cwd=ROOT)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)

"""Greedy decoding and cold start: this runtime against transformers, on the same checkpoint, in one run.

    python benchmarks/decode.py                 # a seeded GPT-2 small, made once in build/benchmarks
    python benchmarks/decode.py --checkpoint models/novelist --json

Each side has a process of its own, so that neither's threads are in the other's way, and the two take turns: A B A B …
A ratio is that of one turn's pair. Cold start is from the start of a fresh process to its first token on a pipe.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from seeded import ROOT, exported, seeded_checkpoint
from turns import machine, make_parser, ratios, serve, spread, take_turns

PROMPT = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a "
    "wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this "
    "truth is so well fixed in the minds of the surrounding families"
)
SIDES = ("gpt2-onnx", "transformers")
COMPILED = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # as pip installs
COLD = {
    "gpt2-onnx": "import runtime; print(runtime.complete({prompt!r}, model={bundle!r}, max_new_tokens=1).token_ids)",
    "transformers": "from transformers import AutoModelForCausalLM, AutoTokenizer; "
    "t = AutoTokenizer.from_pretrained({checkpoint!r}); m = AutoModelForCausalLM.from_pretrained({checkpoint!r}); "
    "i = t({prompt!r}, return_tensors='pt'); "
    "print(m.generate(**i, max_new_tokens=1, do_sample=False, pad_token_id=0)[0, -1:].tolist())",
}


def main() -> None:
    options = parse_arguments()
    if options.worker:
        work(options)
        return
    checkpoint = options.checkpoint or seeded_checkpoint("small")
    bundle = exported(checkpoint)
    speeds, same = measure_decoding(checkpoint, bundle, options)
    starts, memory = measure_cold_start(checkpoint, bundle, options)
    results = {"tokens per second": speeds, "cold start, s": starts, "peak memory of a cold start, MiB": memory}
    if options.json:
        print(
            json.dumps(
                {"machine": machine("onnxruntime", "torch", "transformers"), "same_tokens": same, "results": results},
                indent=2,
            )
        )
        return
    console = Console(width=110)
    console.print(f"{checkpoint.name}, float32, batch 1, {options.tokens} greedy tokens, {options.threads} threads")
    console.print(
        f"{machine('onnxruntime', 'torch', 'transformers')}\ntokens of both sides {'are equal' if same else 'DIFFER'}\n"
    )
    console.print(make_table(results))


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0], tokens=128, rounds=7)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def work(options: argparse.Namespace) -> None:
    """A side's process: load, then complete at each turn."""
    side, folder = options.worker
    serve(runtime_side(folder, options) if side == SIDES[0] else transformers_side(folder, options))


def runtime_side(folder: str, options: argparse.Namespace):
    import runtime

    model = runtime.load(folder, threads=options.threads)
    return lambda: list(model.complete(PROMPT, max_new_tokens=options.tokens).token_ids)


def transformers_side(folder: str, options: argparse.Namespace):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(options.threads)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    settings = {"do_sample": False, "max_new_tokens": options.tokens, "pad_token_id": 0}
    return lambda: model.generate(**inputs, **settings)[0, inputs.input_ids.shape[1] :].tolist()


def measure_decoding(
    checkpoint: Path, bundle: Path, options: argparse.Namespace
) -> tuple[dict[str, list[float]], bool]:
    """Tokens per second of each side's turns, and whether both said the same."""
    turns = take_turns(
        {side: worker_command(side, folder, options) for side, folder in zip(SIDES, (bundle, checkpoint), strict=True)},
        options.rounds,
        "decoding",
    )
    speeds = {side: [len(tokens) / seconds for seconds, tokens in answers] for side, answers in turns.items()}
    return speeds, turns[SIDES[0]][-1][1] == turns[SIDES[1]][-1][1]


def worker_command(side: str, folder: Path, options: argparse.Namespace) -> list[object]:
    command = [sys.executable, __file__, "--worker", side, folder]
    return [*command, "--tokens", options.tokens, "--threads", options.threads]


def measure_cold_start(checkpoint: Path, bundle: Path, options: argparse.Namespace) -> tuple[dict, dict]:
    """Seconds to the first token and MiB of peak memory, of each fresh process."""
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    memory: dict[str, list[float]] = {side: [] for side in SIDES}
    for turn in track(range(options.rounds + 1), description="cold start", console=Console(stderr=True)):
        for side in SIDES:
            script = COLD[side].format(prompt=PROMPT, bundle=str(bundle), checkpoint=str(checkpoint))
            started = time.perf_counter()
            process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT, env=COMPILED)
            process.stdout.readline()
            elapsed = time.perf_counter() - started
            _, status, usage = os.wait4(process.pid, 0)
            process.stdout.close()
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                sys.exit(f"the cold start of {side} failed with exit code {process.returncode}")
            if turn:  # the first fills the page cache
                seconds[side].append(elapsed)
                memory[side].append(usage.ru_maxrss / 1024)
    return seconds, memory


def make_table(results: dict[str, dict[str, list[float]]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("median (min to max)", *SIDES, "ratio of the pairs"):
        table.add_column(heading, justify="left" if heading.startswith("median") else "right", no_wrap=True)
    for name, sides in results.items():
        table.add_row(name, *(spread(sides[side]) for side in SIDES), spread(ratios(*(sides[side] for side in SIDES))))
    return table


if __name__ == "__main__":
    main()

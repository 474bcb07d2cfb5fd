"""On one NVIDIA GPU: parity with PyTorch, tokens per second beside transformers, and where a step's time goes.

    python benchmarks/gpu.py --json gpu.json                  # a seeded GPT-2 small, some six minutes
    python benchmarks/gpu.py --parts speed-1 split --rounds 9
    python benchmarks/gpu.py --device cpu --checkpoint seeded-tiny --tokens 16 --rounds 1 --long 64 --batches 1 4

It needs torch, transformers (4.57 or 5), onnx, numpy, tokenizers and onnxruntime-gpu, and no network. Each part runs in
a process of its own, prints what it finds as soon as it has it, and is given up when the budget is spent: a part that
crashes takes no other with it.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from gpu_parts.bars import bar_table  # noqa: E402
from gpu_parts.plan import PART_SECONDS, Plan, part_names  # noqa: E402
from gpu_parts.running import Budget, run_part  # noqa: E402


def main() -> None:
    options = parse_arguments()
    plan = make_plan(options)
    budget, report = Budget(options.budget), {"plan": vars(plan), "parts": {}}
    for name in ["prepare", *(options.parts or part_names(plan))]:
        report["parts"][name] = run_part(name, plan, budget)
        if options.json:
            options.json.write_text(json.dumps(report, indent=2))
    print(bar_table(report["parts"], plan), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu is a rehearsal (default: cuda)")
    parser.add_argument("--checkpoint", choices=["seeded-small", "seeded-tiny"], default="seeded-small")
    parser.add_argument("--layers", type=int, help="of the checkpoint, instead of all it has")
    parser.add_argument("--prompt", type=int, default=64, help="tokens that speed starts from (default: 64)")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens (default: 128)")
    parser.add_argument("--long", type=int, default=512, help="tokens of a long prompt (default: 512)")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1, 8, 64], help="rows side by side (default: 1 8 64)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns that count (default: 7)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="on the CPU (default: all)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--budget", type=float, default=540, help="seconds in all (default: 540)")
    parser.add_argument("--parts", nargs="+", metavar="PART", help=f"some of {', '.join(PART_SECONDS)}, speed-ROWS")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all values, written after every part")
    options = parser.parse_args()
    for part in options.parts or ():
        if part not in PART_SECONDS and not re.fullmatch(r"speed-[1-9]\d*", part):
            parser.error(f"argument --parts: there is no {part!r}")
    return options


def make_plan(options: argparse.Namespace) -> Plan:
    layers = f"-{options.layers}" if options.layers else ""
    return Plan(
        device=options.device,
        checkpoint=options.checkpoint,
        layers=options.layers,
        prompt=options.prompt,
        tokens=options.tokens,
        long=options.long,
        batches=options.batches,
        rounds=options.rounds,
        threads=options.threads,
        compiled=not options.no_compile,
        folder=str(ROOT / "build" / "benchmarks" / f"gpu-{options.checkpoint}{layers}"),
    )


if __name__ == "__main__":
    main()

"""On one NVIDIA GPU: parity with PyTorch, tokens per second beside transformers, and where a step's time goes.

    python -m benchmarks.gpu --json gpu.json                  # a seeded GPT-2 small, some six minutes
    python -m benchmarks.gpu --parts speed-1 split --rounds 9
    python -m benchmarks.gpu --device cpu --checkpoint seeded-tiny --tokens 16 --rounds 1 --long 64 --batches 1 4

It needs torch, transformers (4.57 or 5), onnx, numpy, tokenizers and onnxruntime-gpu, and no network. Each part runs in
a process of its own, prints what it finds as soon as it has it, and is given up when the budget is spent: a part that
crashes takes no other with it.
"""

import argparse
import json
import re
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common.kept import WORK
from benchmarks.common.study import OneLineParser, count, ratios, spread, text_table
from benchmarks.gpu.parts import PART_SECONDS, Budget, Plan, part_names, run_part

OURS = "ours"
SPEEDS = {  # a side, and how many times its tokens a second ours must reach
    "transformers, static cache, torch.compile": 2.0,
    "transformers, generate": 10.0,
}
FLOOR = 6.0  # times the floor's time that a token may take
UNMEASURED = "unmeasured"


def main() -> None:
    options = parse_arguments()
    plan = make_plan(options)
    budget, found = Budget(options.budget), {}
    for name in ["checkpoint", *(options.parts or part_names(plan))]:
        found[name] = run_part(name, plan, budget)
        if options.json:
            options.json.write_text(json.dumps({"plan": asdict(plan), "parts": found}, indent=2))
    print(bar_table(found, plan), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = OneLineParser("python -m benchmarks.gpu", __doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu is a rehearsal (default: cuda)")
    parser.add_argument("--checkpoint", choices=["seeded-small", "seeded-tiny"], default="seeded-small")
    parser.add_argument("--layers", type=count, help="of the checkpoint, instead of all it has")
    parser.add_argument("--prompt", type=count, default=64, help="tokens that speed starts from (default: 64)")
    parser.add_argument("--tokens", type=count, default=128, help="new tokens (default: 128)")
    parser.add_argument("--long", type=count, default=512, help="tokens of a long prompt (default: 512)")
    parser.add_argument(
        "--batches", type=count, nargs="+", default=[1, 8, 64], help="rows side by side (default: 1 8 64)"
    )
    parser.add_rounds(7)
    parser.add_threads()
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
        folder=str(WORK / f"gpu-{options.checkpoint}{layers}"),
    )


def bar_table(parts: dict[str, dict[str, Any]], plan: Plan) -> str:
    rows = [*speed_bars(parts.get("speed-1", {})), *(parity_bar(parts, precision) for precision in ("fp32", "fp16"))]
    if not plan.is_full:
        rows = [[bar, UNMEASURED, f"{found}, in this rehearsal" if found else ""] for bar, _, found in rows]
    return text_table("Bars: GPT-2 small on a GPU, batch 1", ["bar", "verdict", "found"], rows)


def speed_bars(part: dict[str, Any]) -> list[list[str]]:
    speeds = part.get("speed", {}).get("decode", {})
    ours, rows = speeds.get(OURS, []), []
    for side, least in SPEEDS.items():
        times = ratios(ours, speeds[side]) if ours and side in speeds else []
        met = bool(times) and statistics.median(times) >= least
        rows.append(row(f"fp16, at least {least:.0f} times {side}", met, spread(times) if times else ""))
    least = part["floor"]["tokens/s"] if ours else 0.0
    times = [least / one for one in ours]
    met = bool(times) and statistics.median(times) <= FLOOR
    return [*rows, row(f"fp16, within {FLOOR:.0f} times the memory floor", met, spread(times) if times else "")]


def parity_bar(parts: dict[str, dict[str, Any]], precision: str) -> list[str]:
    """Every tensor, and for fp32 every greedy token."""
    part = parts.get(f"parity-{precision}", {})
    shares = [one["share"] for one in part.get("rows", [])]
    differences = part.get("greedy", {}).get("differences", [])
    whole = bool(shares) and "greedy" in part
    met = whole and max(shares) <= 1 and all(one["passed"] for one in differences)
    found = f"{max(shares):.0%} of what is allowed, at the worst" if whole else ""
    return row(f"{precision} parity with PyTorch on the device", met, found)


def row(bar: str, met: bool, found: str) -> list[str]:
    return [bar, "PASS" if met else "MISSED" if found else UNMEASURED, found]


if __name__ == "__main__":
    main()

"""What was set out to reach, and whether it was: PASS, MISSED, or unmeasured."""

import statistics
from typing import Any

from figures import ratios, spread
from gpu_parts.plan import Plan
from gpu_parts.text_table import text_table

OURS = "ours"
SPEEDS = {  # a side, and how many times its tokens a second ours must reach
    "transformers, static cache, torch.compile": 2.0,
    "transformers, generate": 10.0,
}
FLOOR = 6.0  # times the floor's time that a token may take
UNMEASURED = "unmeasured"


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

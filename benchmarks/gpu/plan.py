"""What is measured, as the parts' processes are told, and what they answer with."""

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Piece = tuple[str, Any, str]  # a key and what belongs there in the results, and a table of it

# What a part takes on a GPU, about: it is not begun with less left.
PART_SECONDS = {"checkpoint": 5, "parity-fp16": 20, "parity-fp32": 20, "split": 20, "prefill": 40}
SPEED_SECONDS = 45  # of each batch


@dataclass
class Plan:
    """The choices of the command line, and the `folder` of what is prepared."""

    device: str
    checkpoint: str
    layers: int | None
    prompt: int
    tokens: int
    long: int
    batches: list[int]
    rounds: int
    threads: int
    compiled: bool
    folder: str
    deadline: float = 0.0  # when a part has to have ended, as time.time() has it

    @property
    def is_full(self) -> bool:
        """Whether bars apply, which are of GPT-2 small on a GPU."""
        return self.device == "cuda" and self.checkpoint == "seeded-small" and self.layers is None


def part_names(plan: Plan) -> list[str]:
    """What the bars need first."""
    speeds = [f"speed-{rows}" for rows in plan.batches]
    return ["parity-fp16", "parity-fp32", *speeds[:1], "split", "prefill", *speeds[1:]]


def expected_seconds(name: str, plan: Plan) -> float:
    return PART_SECONDS.get(name, SPEED_SECONDS) if plan.device == "cuda" else 1


def one_line(error: Exception) -> str:
    """What happened and where, without the pages that compilers add."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text} ({Path(place.filename).name}:{place.lineno})"

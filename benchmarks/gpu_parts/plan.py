"""What is measured, as the parts' processes are told."""

from dataclasses import dataclass

# What a part takes on a GPU, about: it is not begun with less left.
PART_SECONDS = {"prepare": 5, "parity-fp16": 20, "parity-fp32": 20, "split": 20, "prefill": 40}
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

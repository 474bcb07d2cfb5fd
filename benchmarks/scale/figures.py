"""What came of a simulated load: percentiles, the share that was refused, tokens a second, and what they cost."""

from dataclasses import dataclass

import numpy as np

from benchmarks.scale.fleet import Fleet, Plan
from benchmarks.scale.load import Texts

ARRIVED, WAITED, FIRST, LATENCY, TOKENS = range(5)
TIMES = {"waiting": WAITED, "first token": FIRST, "whole text": LATENCY}


@dataclass(frozen=True, slots=True)
class Figures:
    """Of the texts that arrived in a time; seconds by what they are of and which percentile."""

    seconds: dict[str, dict[int, float]]
    texts: int
    tokens: float


def table_of(fleet: Fleet) -> np.ndarray:
    """A row for each text that ended."""
    return np.frombuffer(fleet.ended).reshape(-1, 5)


def figures(ended: np.ndarray, since: float = 0.0, until: float = float("inf")) -> Figures:
    """Of the texts that arrived between two seconds."""
    rows = ended[(ended[:, ARRIVED] >= since) & (ended[:, ARRIVED] < until)]
    seconds = {
        name: {share: float(np.percentile(rows[:, column], share)) if len(rows) else float("nan") for share in (50, 99)}
        for name, column in TIMES.items()
    }
    return Figures(seconds, len(rows), float(rows[:, TOKENS].sum()))


def capacity(plan: Plan, texts: Texts) -> float:
    """Texts a second of one replica whose slots are full, if no beginning was read before."""
    prompt, new = texts.means()
    speed = plan.speed
    return 1 / (speed.request + prompt * speed.token + new * speed.step(plan.slots) / plan.slots)


def cost(replicas: int, hours: float, tokens: float, *, cores: float, price: float) -> float:
    """Of a million tokens, by the price of a core for an hour."""
    return 1e6 * replicas * cores * hours * price / tokens

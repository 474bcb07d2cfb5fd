"""How long a run will take: what still has to be made, and the turns, by what they took before on this machine."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.kept import Kept, kept_bundle, kept_checkpoint, lacking, note_seconds, noted_seconds
from benchmarks.common.turns import PAUSE
from benchmarks.peers.contestants import OURS, Side, requirements
from benchmarks.peers.preparing import kept_environment, kept_format
from benchmarks.peers.tasks import METRICS

# Seconds on two CPUs, where none are noted: fixed ones, and those of a checkpoint of GPT-2 small's size.
INSTALLING, CHARTING = 240.0, 40.0
SEEDING = 20.0
EXPORTING = 20.0, 240.0
CONVERTING = 20.0, 30.0
ROUND = 5.0, 15.0  # a side's turn at every metric, and its start
LOADING = 3.0, 3.0
BANDWIDTH = 30.0
SMALL = 498e6  # bytes


@dataclass(frozen=True, slots=True)
class Work:
    """All of a run, before anything of it is begun.

    Attributes:
        made: What is kept and needed, with a guess of the seconds that making it takes.
        missing: Names of what of it has to be made.
    """

    made: list[tuple[Kept, float]]
    missing: set[str]
    sides: list[Side]
    rounds: int
    scale: float
    label: Callable[[Side], str]

    def line(self) -> str:
        """One sentence on what there is to do and how long it takes."""
        noted = noted_seconds()
        making = [noted.get(kept.name, guess) for kept, guess in self.made if kept.name in self.missing]
        known = [noted[self.label(side)] for side in self.sides if self.label(side) in noted]
        guessed = [scaled(ROUND, self.scale)] * (len(self.sides) - len(known))
        measuring = (self.rounds + 1) * sum([*known, *guessed])
        loading = len(self.sides) * len(METRICS) * scaled(LOADING, self.scale)
        minutes = max(1, round((sum(making) + measuring + loading + BANDWIDTH) / 60))
        todo = f"{len(self.missing)} of {len(self.made)} things to make" if self.missing else "nothing to make"
        known_by = "all as before" if not guessed else f"{len(known)} as before, {len(guessed)} guessed"
        turns = f"{len(self.sides)} sides × {self.rounds + 1} turns, {known_by}"
        return f"this will take about {minutes} minute{'s' if minutes > 1 else ''} ({todo}; {turns})"


def plan_work(checkpoint: Path | None, sides: Sequence[Side], precisions: Sequence[str], options: Any) -> Work:
    """The work on a checkpoint, or on the seeded one."""
    seeded = kept_checkpoint("small")
    folder = checkpoint or seeded.folder
    weights = folder / "model.safetensors"
    scale = weights.stat().st_size / SMALL if weights.exists() else 1.0
    bundle = kept_bundle(folder)
    converted = [kept_format(side, folder) for side in sides if side.contestant != OURS]
    peers = dict.fromkeys(side.contestant for side in sides if side.contestant != OURS)
    made = [
        *([] if checkpoint else [(seeded, SEEDING)]),
        *((kept_environment(requirements(peer)), INSTALLING) for peer in peers),
        *([(kept_environment(requirements("chart")), CHARTING)] if options.chart else []),
        (bundle, scaled(EXPORTING, scale)),
        *((kept, scaled(CONVERTING, scale)) for kept in converted),
    ]
    if options.fresh:
        for kept, _ in made:
            kept.forget()
    missing = {kept.name for kept, _ in made if not kept.is_made()}
    missing |= {bundle.name} if lacking(bundle, precisions) else set()
    return Work(made, missing, list(sides), options.rounds, scale, label_of(folder, options))


def label_of(checkpoint: Path, options: Any) -> Callable[[Side], str]:
    """What a side's round is called among the noted durations."""
    name = f"{checkpoint.resolve().name}, {options.prompt} + {options.tokens} tokens, {options.threads} threads"
    return lambda side: f"a round of {side.name}: {name}"


def scaled(seconds: tuple[float, float], scale: float) -> float:
    fixed, small = seconds
    return fixed + scale * small


def note_rounds(work: Work, results: dict[str, dict[str, Any]]) -> None:
    """For the next run's estimate: what a round of each side took, of those that went through."""
    names = [metric.name for metric in METRICS]
    for side in work.sides:
        found = results[side.name]
        if not found["failed"] and "start" in found["values"]:
            turns = [statistics.mean(map(sum, found["seconds"][name])) for name in names]
            seconds = [*turns, statistics.mean(found["values"]["start"])]
            note_seconds({work.label(side): sum(seconds) + PAUSE * len(seconds)})

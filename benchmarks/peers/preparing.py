"""What each side serves from, made once and kept: its environment, and the checkpoint in its own format.

And how long a run will take: what still has to be made, and the turns, by what they took before on this machine.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.kept import (
    ROOT,
    WORK,
    Kept,
    digest,
    kept_bundle,
    kept_checkpoint,
    lacking,
    note_seconds,
    noted_seconds,
)
from benchmarks.common.study import remark
from benchmarks.common.turns import PAUSE, SideError, step
from benchmarks.peers.contestants import (
    OURS,
    Ready,
    Side,
    last_line,
    line_of,
    log_of,
    requirements,
    side_environment,
    start,
)
from benchmarks.peers.measuring import METRICS

# Seconds on two CPUs, where none are noted: fixed ones, and those of a checkpoint of GPT-2 small's size.
INSTALLING, CHARTING = 240.0, 40.0
SEEDING = 20.0
EXPORTING = 20.0, 240.0
CONVERTING = 20.0, 30.0
ROUND = 5.0, 15.0  # a side's turn at every metric, and its start
LOADING = 3.0, 3.0
BANDWIDTH = 30.0
SMALL = 498e6  # bytes


def kept_environment(file: Path) -> Kept:
    """What a requirements file asks for."""
    return Kept(WORK / "env" / file.stem, file.read_text())


def kept_format(side: Side, checkpoint: Path) -> Kept:
    """A checkpoint in a peer's own format, by all that this depends on."""
    name = f"{checkpoint.resolve().name}-{side.name.replace(' ', '-')}"
    own = [checkpoint / name for name in ("config.json", "model.safetensors", "tokenizer.json")]
    return Kept(
        WORK / "formats" / name, digest([*own, *side.sources, requirements(side.contestant)], str(checkpoint.resolve()))
    )


def make_ready(sides: list[Side], checkpoint: Path, bundle: Path, threads: int) -> tuple[list[Ready], dict[str, str]]:
    """The sides that can be had, and why the others cannot."""
    ready: list[Ready] = []
    failed: dict[str, str] = {}
    for side in sides:
        try:
            ready.append(prepare(side, checkpoint.resolve(), bundle, threads))
        except SideError as error:
            failed[side.name] = str(error)
            remark(f"{side.label} is left out: {error}")
    return ready, failed


def prepare(side: Side, checkpoint: Path, bundle: Path, threads: int) -> Ready:
    environment = side_environment(OMP_NUM_THREADS=str(threads), PYTHONPATH=str(ROOT))
    if side.contestant == OURS:  # serves from the bundle; what that is costs nothing to find out
        python = Path(sys.executable)
        return Ready(side, python, told_facts(side, python, checkpoint, bundle, bundle, environment), environment)
    python = python_of(requirements(side.contestant))
    kept = kept_format(side, checkpoint)
    facts = kept.folder / "facts.json"
    if not kept.is_made():
        with step(f"preparing {side.label}"), kept.making():
            kept.folder.mkdir()
            facts.write_text(json.dumps(told_facts(side, python, checkpoint, bundle, kept.folder, environment)))
    return Ready(side, python, json.loads(facts.read_text()), environment)


def told_facts(
    side: Side, python: Path, checkpoint: Path, bundle: Path, folder: Path, environment: dict[str, str]
) -> dict[str, Any]:
    """What the side's module says of what it has written into `folder`."""
    command = [python, "-m", side.module, "prepare", checkpoint, bundle, folder, side.precision]
    log = log_of(side, "prepare")
    process = start(command, environment, log)
    facts: dict[str, Any] = json.loads(line_of(process, log))
    process.communicate()
    if process.returncode:
        raise SideError(f"{last_line(log)} (exit code {process.returncode})")
    return facts


def python_of(file: Path) -> Path:
    """The interpreter of a requirements file's environment.

    Raises:
        SideError: It cannot be made; the reason is pip's.
    """
    kept = kept_environment(file)
    python = kept.folder / "bin" / "python"
    if not kept.is_made():
        log = WORK / "logs" / f"install-{file.stem}.log"
        with step(f"installing {file.stem} (some are built from source, which takes minutes)"), kept.making():
            run([sys.executable, "-m", "venv", kept.folder], log)
            run([python, "-m", "pip", "install", "--requirement", file], log)
    return python


def run(command: list[object], log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        done = subprocess.run(
            [str(part) for part in command], stdout=file, stderr=subprocess.STDOUT, env=side_environment(), check=False
        )
    if done.returncode:
        raise SideError(f"not installed: {last_line(log, starting='ERROR')}")


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
    chosen = f"{options.prompt} + {options.tokens} tokens, {options.rows} rows, {options.threads} threads"
    name = f"{checkpoint.resolve().name}, {chosen}"
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

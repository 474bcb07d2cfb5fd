"""What each side serves from: its environment, and the checkpoint in its own format, made once and kept."""

import hashlib
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contestants import OURS, Side, requirements
from environments import python_of
from processes import SideError, last_line, line_of, side_environment, start
from rich.console import Console
from seeded import ROOT, WORK
from steps import step

FORMATS = WORK / "formats"


@dataclass(frozen=True, slots=True)
class Ready:
    """A side that can be started.

    Attributes:
        facts: The folder it serves from, the bytes it needs there, and the bytes of weights that a token reads.
    """

    side: Side
    python: Path
    facts: dict[str, Any]
    environment: dict[str, str]

    def command(self, mode: str, threads: int, *more: str) -> list[object]:
        return [self.python, self.side.script, mode, self.facts["folder"], self.side.precision, threads, *more]

    def log(self, mode: str) -> Path:
        return log_of(self.side, mode)


def log_of(side: Side, mode: str) -> Path:
    return WORK / "logs" / f"{side.name.replace(' ', '-')}-{mode}.log"


def make_ready(sides: list[Side], checkpoint: Path, bundle: Path, threads: int) -> tuple[list[Ready], dict[str, str]]:
    """The sides that can be had, and why the others cannot."""
    ready, failed = [], {}
    for side in sides:
        try:
            ready.append(prepare(side, checkpoint, bundle, threads))
        except SideError as error:
            failed[side.name] = str(error)
            Console(stderr=True).print(f"{side.label} is left out: {error}", highlight=False, soft_wrap=True)
    return ready, failed


def prepare(side: Side, checkpoint: Path, bundle: Path, threads: int) -> Ready:
    environment = side_environment(OMP_NUM_THREADS=str(threads))
    if side.contestant == OURS:
        python = Path(sys.executable)
        environment["PYTHONPATH"] = str(ROOT)
    else:
        python = python_of(requirements(side.contestant))
    facts = prepared_facts(side, python, checkpoint, bundle, environment)
    return Ready(side, python, facts, environment)


def prepared_facts(side: Side, python: Path, checkpoint: Path, bundle: Path, environment: dict[str, str]) -> dict:
    """What the side's script says of what it has written; kept, but for ours, which is as new as its bundle."""
    name = f"{checkpoint.resolve().name}-{side.name.replace(' ', '-')}"
    folder = FORMATS / f"{name}-{digest(side, checkpoint)}"
    kept = folder / "facts.json"  # written last
    if side.contestant != OURS and kept.exists():
        return json.loads(kept.read_text())
    for outdated in FORMATS.glob(f"{name}-*"):
        shutil.rmtree(outdated)
    folder.mkdir(parents=True)
    command = [python, side.script, "prepare", checkpoint.resolve(), bundle.resolve(), folder, side.precision]
    log = log_of(side, "prepare")
    with step(f"preparing {side.label}"):
        process = start(command, environment, log)
        facts = json.loads(line_of(process, log))
        process.communicate()
    if process.returncode:
        raise SideError(f"{last_line(log)} (exit code {process.returncode})")
    kept.write_text(json.dumps(facts))
    return facts


def digest(side: Side, checkpoint: Path) -> str:
    """Of all that a format depends on."""
    hashed = hashlib.sha256()
    sources = [checkpoint / "config.json", checkpoint / "model.safetensors", *sorted(side.script.parent.glob("*.py"))]
    if side.contestant != OURS:
        sources.append(requirements(side.contestant))
    for source in sources:
        with source.open("rb") as file:
            hashed.update(hashlib.file_digest(file, "sha256").digest())
    return hashed.hexdigest()[:12]

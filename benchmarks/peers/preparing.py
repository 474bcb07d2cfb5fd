"""What each side serves from: its environment, and the checkpoint in its own format, both made once and kept."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.kept import ROOT, WORK, Kept, digest
from benchmarks.common.study import remark
from benchmarks.common.turns import SideError, step
from benchmarks.peers.contestants import OURS, Side, requirements
from benchmarks.peers.processes import last_line, line_of, side_environment, start


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
        folder, precision = self.facts["folder"], self.side.precision
        return [self.python, "-m", self.side.module, mode, folder, precision, threads, *more]

    def log(self, mode: str) -> Path:
        return log_of(self.side, mode)


def log_of(side: Side, mode: str) -> Path:
    return WORK / "logs" / f"{side.name.replace(' ', '-')}-{mode}.log"


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

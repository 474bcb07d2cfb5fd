"""Virtual environments, each made from its own requirement file, and made again when that changes."""

import subprocess
import sys
from pathlib import Path

from processes import SideError, last_line, side_environment
from seeded import WORK
from steps import step


def python_of(requirements: Path) -> Path:
    """The interpreter of this requirement file's environment.

    Raises:
        SideError: It cannot be made; the reason is pip's.
    """
    folder = WORK / "env" / requirements.stem
    stamp = folder / "installed.txt"  # a copy of what is installed, written last
    if not stamp.exists() or stamp.read_text() != requirements.read_text():
        with step(f"installing {requirements.stem} (some are built from source, which takes minutes)"):
            install(folder, requirements)
        stamp.write_text(requirements.read_text())
    return folder / "bin" / "python"


def install(folder: Path, requirements: Path) -> None:
    log = WORK / "logs" / f"install-{requirements.stem}.log"
    run([sys.executable, "-m", "venv", "--clear", folder], log)
    run([folder / "bin" / "python", "-m", "pip", "install", "--requirement", requirements], log)


def run(command: list[object], log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        done = subprocess.run(
            [str(part) for part in command], stdout=file, stderr=subprocess.STDOUT, env=side_environment(), check=False
        )
    if done.returncode:
        raise SideError(f"not installed: {last_line(log, starting='ERROR')}")

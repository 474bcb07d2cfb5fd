"""Lends a stage in which a bundle is built; the bundle appears at the output whole or not at all."""

import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from export.bundle.output_folder import check_output, existing, home_of
from export.bundle.placing import NEW, place, put_back
from export.bundle.stage import alone_in, locked_stage, stages_of, taken_over
from runtime.bundle.manifest import NAME
from runtime.engine.interrupts import interrupts_held
from runtime.errors import command
from runtime.files import check_name

Say = Callable[[str], object]
ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def staged(output: Path, *, force: bool, say: Say = on_stderr) -> Iterator[Path]:
    """Lend a folder that replaces `output` when the block ends; on any error it is removed."""
    output = prepare(output, force=force, say=say)
    home = home_of(output)
    with folder_at(home), locked_stage(home, output.name) as stage:
        try:
            (stage / NEW).mkdir()
            yield stage / NEW
            with interrupts_held(ENDING), alone_in(home):
                check_output(output, force=force)  # something may have appeared there meanwhile
                place(stage, output, force=force)
        except Exception as error:
            raise of_the_system(error, output) from None
        finally:
            with interrupts_held(ENDING):
                shutil.rmtree(stage, ignore_errors=True)


def of_the_system(error: Exception, output: Path) -> Exception:
    """The OSError that tokenizers and safetensors, written in Rust, tell in the text of their own exceptions."""
    told = None if isinstance(error, OSError) else re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(told[1]), os.strerror(int(told[1])), str(output)) if told else error


@contextmanager
def folder_at(path: Path) -> Iterator[None]:
    """Make a folder and those above it, and remove those of them that are empty after the block."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def prepare(output: Path, *, force: bool, say: Say = on_stderr) -> Path:
    """Remove what killed exports left, refuse an output that cannot be written, and resolve a link to its folder."""
    if not output.is_symlink() or output.exists():  # a broken link is refused as it is
        output = output.resolve()
    check_name(output)
    with alone_in(existing(home_of(output))):
        for stage in list(stages_of(output)):
            clear(stage, output, say)
    check_output(output, force=force)
    return output


def clear(stage: Path, output: Path, say: Say) -> None:
    """Remove a stage that no running export holds, after putting back what it was replacing."""
    try:
        with taken_over(stage) as free:
            if not free:
                return
            size = size_of(stage)
            if put_back(stage, output) and (output / NAME).exists():
                say(f"put back {output}, which a killed export was replacing")
            if stage.exists():
                shutil.rmtree(stage)
                say(f"removed {stage.name}, {size}, left by a killed export")
    except FileNotFoundError:  # another export removed it first
        return
    except OSError as error:
        why = error.strerror or str(error)
        say(f"left {stage} ({why}); if no export is running, remove it: {command('rm', '-r', stage)}")


def size_of(folder: Path) -> str:
    size = sum(path.lstat().st_size for path in folder.rglob("*"))
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"

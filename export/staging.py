"""A folder that appears whole or not at all."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.errors import ExportError
from runtime.manifest import NAME


@contextmanager
def staged(output: Path, *, force: bool) -> Iterator[Path]:
    """Lend a folder beside `output` and rename it to `output` at the end; on any error it is removed."""
    output = output.resolve()  # what a link points to is replaced, not the link
    check_output(output, force=force)
    output.parent.mkdir(parents=True, exist_ok=True)
    work = output.with_name(f".{output.name}.{secrets.token_hex(4)}.partial")
    work.mkdir()
    try:
        yield work
        check_output(output, force=force)  # somebody may have put something there meanwhile
        replace(work, output)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_output(output: Path, *, force: bool) -> None:
    """Refuse what exists, and even with `force` whatever is neither empty nor a bundle."""
    if not output.exists() and not output.is_symlink():
        return
    if not output.is_dir() or (any(output.iterdir()) and not (output / NAME).is_file()):
        raise ExportError(f"{output} exists and is not a bundle; choose another --output")
    if any(output.iterdir()) and not force:
        raise ExportError(f"{output} exists; choose another --output, or replace it with --force")


def replace(work: Path, output: Path) -> None:
    """Put `work` in the place of `output`, which is kept until that is done."""
    if not output.exists():
        work.rename(output)
        return
    old = work.with_suffix(".old")
    output.rename(old)
    try:
        work.rename(output)
    except BaseException:
        if not output.exists():
            old.rename(output)
        raise
    shutil.rmtree(old)

"""Guards against files replaced after their bundle was opened: the same files, or BundleError."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from runtime.bundle.bundle import Bundle, file_sha256, parsed_files
from runtime.errors import BundleError
from runtime.files import find_mark
from runtime.forks import making_session


@contextmanager
def same_files(bundle: Bundle, path: Path) -> Iterator[set[str]]:
    """Check a graph and its weights before and after the block, which makes a session of them; yield the weight files.

    The check before keeps another bundle's files from being parsed; the check after catches files that were replaced
    meanwhile. One session is made at a time.
    """
    graph = path.relative_to(bundle.folder).as_posix()
    with making_session:
        check_same(bundle, [graph])
        weights = bundle.weights_at(path)
        check_same(bundle, weights)
        yield weights
        check_same(bundle, [graph, *weights])


def check_same(bundle: Bundle, names: Iterable[str]) -> None:
    """Raise BundleError unless these files are those that the bundle was opened with, or copies of them.

    A file with another mark is hashed: a copy has the manifest's SHA-256.
    """
    for name in names:
        path = bundle.folder / name
        try:
            same = find_mark(path) == bundle.marks[name]
        except (OSError, ValueError):
            raise gone(bundle, path) from None
        if not same and file_sha256(path) != bundle.manifest.files[name].sha256:
            raise replaced(bundle, path)


def names_read(bundle: Bundle, precisions: Iterable[str]) -> set[str]:
    """The files that loading these precisions reads."""
    return {*parsed_files(bundle.manifest), *(name for each in precisions for name in bundle.weights_of(each))}


def check_untouched(bundle: Bundle, names: Iterable[str]) -> None:
    """Raise BundleError if a file changed since the bundle was opened: what was read may mix old and new."""
    for name in names:
        path = bundle.folder / name
        try:
            same = find_mark(path).same_content(bundle.marks[name])
        except (OSError, ValueError):
            raise gone(bundle, path) from None
        if not same:
            raise BundleError(f"{path} was changed while it was loaded; load it again when it is whole")


def reopen(bundle: Bundle, precisions: Iterable[str]) -> Bundle:
    """The same bundle for another process; BundleError if a file that these precisions read has changed."""
    check_same(bundle, parsed_files(bundle.manifest))
    names = names_read(bundle, precisions)
    marks = {}
    for name in names:
        try:
            marks[name] = find_mark(bundle.folder / name)
        except (OSError, ValueError):
            raise gone(bundle, bundle.folder / name) from None
    check_same(bundle, names)
    return replace(bundle, marks={**bundle.marks, **marks})


def gone(bundle: Bundle, path: Path) -> BundleError:
    return BundleError(f"{path} is gone since {bundle.folder.name} was loaded; {how_to_load(bundle)}")


def replaced(bundle: Bundle, path: Path) -> BundleError:
    return BundleError(f"{path} was replaced since {bundle.folder.name} was loaded; {how_to_load(bundle)}")


def how_to_load(bundle: Bundle) -> str:
    return f"load the model again: runtime.load({str(bundle.folder)!r})"

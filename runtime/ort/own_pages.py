"""Weights that a session has to itself, whatever becomes of their file.

ONNX Runtime on the CPU leaves weights that it need not lay out anew (embeddings, for the most part) where they lie in
their file, mapped. Whoever writes into that file then changes them, and whoever cuts it short, as `cp` does, ends the
process with a bus error. Linux can put other pages with the same content in the place of the mapped ones.
"""

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

MAPS = Path("/proc/self/maps")
PRIVATE, WRITABLE = "p", "w"
CHUNK = 2**23  # bytes that are there twice for a moment
POPULATE = 23  # MADV_POPULATE_WRITE, of Linux 5.14: all pages at once instead of a fault for each
MAYMOVE, FIXED = 1, 2  # of mremap
FAILED = ctypes.c_void_p(-1).value
Range = tuple[int, int]  # addresses


@contextmanager
def own_pages(files: Iterable[Path]) -> Iterator[None]:
    """What the block maps of these files is its own memory afterwards; what was mapped before is left as it is.

    Where the system cannot do that, nothing happens. Nobody else may map these files meanwhile: what is not the
    block's may be unmapped at any time, and its addresses be somebody's.
    """
    wanted = {os.path.realpath(file) for file in files}
    before = mapped(wanted)
    yield
    for start, end in mapped(wanted):
        if not any(start < old_end and old_start < end for old_start, old_end in before):
            for chunk in range(start, end, CHUNK):
                replace(chunk, min(CHUNK, end - chunk))


def mapped(files: set[str]) -> list[Range]:
    """Where files are mapped, privately and to be written to."""
    if not files or not sys.platform.startswith("linux"):
        return []
    try:
        lines = os.fsdecode(MAPS.read_bytes()).split("\n")
    except OSError:  # a container may hide it
        return []
    return [addresses for addresses, file in map(parse, filter(None, lines)) if file in files]


def parse(line: str) -> tuple[Range, str]:
    """(Addresses, file) of a line of the table; no file where the mapping is shared or must not be written to."""
    addresses, modes, _, _, _, file = [*line.split(maxsplit=5), ""][:6]
    start, end = addresses.split("-")
    private = PRIVATE in modes and WRITABLE in modes
    return (int(start, 16), int(end, 16)), file.replace("\\012", "\n") if private else ""


def replace(start: int, size: int) -> None:
    """Put a copy in the place of `size` bytes from `start` on; readers see the same bytes before and after.

    Where there is no memory for it, the pages stay the file's.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
    length, anonymous = ctypes.c_size_t(size), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    rights = mmap.PROT_READ | mmap.PROT_WRITE
    copy = libc.mmap(None, length, rights, anonymous, -1, ctypes.c_long(0))
    if copy == FAILED:
        return
    libc.madvise(ctypes.c_void_p(copy), length, POPULATE)
    ctypes.memmove(copy, start, size)
    if libc.mremap(ctypes.c_void_p(copy), length, length, MAYMOVE | FIXED, ctypes.c_void_p(start)) == FAILED:
        libc.munmap(ctypes.c_void_p(copy), length)

"""Copies a session's memory-mapped weights into private pages, so that later changes to their file do no harm.

On the CPU, ONNX Runtime leaves weights that it does not repack (mostly embeddings) in their file, memory-mapped.
Writing into that file then changes them, and truncating it, as `cp` does, kills the process with a bus error. Linux can
replace the mapped pages by others with the same content.
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
CHUNK = 2**23  # bytes that exist twice for a moment
POPULATE = 23  # MADV_POPULATE_WRITE, from Linux 5.14: all pages at once instead of one fault each
MAYMOVE, FIXED = 1, 2  # of mremap
FAILED = ctypes.c_void_p(-1).value
Range = tuple[int, int]  # addresses


@contextmanager
def own_pages(files: Iterable[Path]) -> Iterator[None]:
    """Replace what the block maps of these files by private copies; earlier mappings are left as they are.

    Where the system cannot do that, nothing happens. No other thread may map these files meanwhile: it could unmap them
    at any time, and their addresses could be reused.
    """
    wanted = list(files)
    before = [addresses for addresses, _ in mappings()] if wanted else []
    yield
    for start, end in mapped(wanted):
        if not any(start < old_end and old_start < end for old_start, old_end in before):
            for chunk in range(start, end, CHUNK):
                replace(chunk, min(CHUNK, end - chunk))


def mapped(files: Iterable[Path]) -> list[Range]:
    """The address ranges where files are mapped as private and writable."""
    names = {os.path.realpath(file) for file in files}  # of now: a folder may have been renamed
    return [addresses for addresses, file in mappings() if file in names] if names else []


def mappings() -> list[tuple[Range, str]]:
    """All private and writable mappings of files, whatever they are called: names change with their folders."""
    if not sys.platform.startswith("linux"):
        return []
    try:
        lines = os.fsdecode(MAPS.read_bytes()).split("\n")
    except OSError:  # a container may hide it
        return []
    return [(addresses, file) for addresses, file in map(parse, filter(None, lines)) if file]


def parse(line: str) -> tuple[Range, str]:
    """(addresses, file) of a line of the table; no file if the mapping is shared or not writable."""
    addresses, modes, _, _, _, file = [*line.split(maxsplit=5), ""][:6]
    start, end = addresses.split("-")
    private = PRIVATE in modes and WRITABLE in modes
    return (int(start, 16), int(end, 16)), file.replace("\\012", "\n") if private else ""


def replace(start: int, size: int) -> None:
    """Replace `size` bytes from `start` on by a copy; readers see the same bytes before and after.

    If there is no memory for it, the pages stay the file's.
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

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
from typing import NamedTuple

MAPS = Path("/proc/self/maps")
PRIVATE, WRITABLE = "p", "w"
CHUNK = 2**23  # bytes that exist twice for a moment
POPULATE = 23  # MADV_POPULATE_WRITE, from Linux 5.14: all pages at once instead of one fault each
MAYMOVE, FIXED = 1, 2  # of mremap
FAILED = ctypes.c_void_p(-1).value


@contextmanager
def own_pages(files: Iterable[Path]) -> Iterator[None]:
    """Replace what the block maps of these files by private copies; earlier mappings are left as they are.

    Where the system cannot do that, nothing happens. No other thread may map these files meanwhile: it could unmap them
    at any time, and their addresses could be reused.
    """
    wanted = list(files)
    before = mappings() if wanted else []
    yield
    names = {os.path.realpath(file) for file in wanted}  # of now: a folder may have been renamed
    for found in mappings() if names else []:
        if found.name in names and not any(found.overlaps(earlier) for earlier in before):
            for chunk in range(found.start, found.end, CHUNK):
                replace(chunk, min(CHUNK, found.end - chunk))


class Mapping(NamedTuple):
    """Addresses where a file is mapped as private and writable."""

    start: int
    end: int
    file: tuple[str, str]  # device and inode, which stay when the folder is renamed
    name: str

    def overlaps(self, earlier: "Mapping") -> bool:
        """Whether the other is of the same file and addresses; those of a mapping that has gone may be used again."""
        return self.file == earlier.file and self.start < earlier.end and earlier.start < self.end


def mappings() -> list[Mapping]:
    """All private and writable mappings of files."""
    if not sys.platform.startswith("linux"):
        return []
    try:
        lines = os.fsdecode(MAPS.read_bytes()).split("\n")
    except OSError:  # a container may hide it
        return []
    return [found for found in map(parse, filter(None, lines)) if found is not None]


def parse(line: str) -> Mapping | None:
    """What a line of the table tells; None if nothing is mapped there that is private, writable and a file's."""
    addresses, modes, _, device, inode, name = [*line.split(maxsplit=5), ""][:6]
    if not name or PRIVATE not in modes or WRITABLE not in modes:
        return None
    start, end = addresses.split("-")
    return Mapping(int(start, 16), int(end, 16), (device, inode), name.replace("\\012", "\n"))


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

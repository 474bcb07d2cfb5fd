"""Exchanges two folders in one step, where the system and the file system can."""

import ctypes
import errno
import os
from pathlib import Path
from typing import Any

AT_FDCWD = -100  # of fcntl.h: paths are relative to the current folder
RENAME_EXCHANGE = 2  # of linux/fs.h
CANNOT = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}


def exchange(one: Path, other: Path) -> bool:
    """Exchange two paths; at any moment both exist. False where that cannot be done, an OSError where it fails."""
    renameat2 = find_renameat2()
    if renameat2 is None:
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def find_renameat2() -> Any:
    """Linux's renameat2 as the C library has it, glibc from 2.28 on; None elsewhere."""
    try:
        found = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return None
    found.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return found

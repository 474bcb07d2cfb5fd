"""Names of files that only Python can read: ONNX Runtime, tokenizers and safetensors take UTF-8 alone."""

import os
import sys

from runtime.errors import BundleError
from runtime.shell import quote


def check_name(path: str | os.PathLike[str]) -> None:
    """Raise BundleError unless Python and they mean the same file."""
    name = os.fsdecode(path)
    try:
        same = os.fsencode(name) == name.encode("utf-8")
    except UnicodeEncodeError:  # what the locale does not have: a lone surrogate if it was read, else a character
        same = False
    if not same:
        raise BundleError(f"{quote(name)} cannot be used: {cause()}")


def cause() -> str:
    encoding = sys.getfilesystemencoding()
    if encoding == "utf-8":
        return "its name is not UTF-8; rename it"
    return f"in this locale names are {encoding.upper()}; choose another: export LC_ALL=C.UTF-8 (or PYTHONUTF8=1)"

"""What the server needs: which packages of the extra `serve` are installed, and whether they can be imported."""

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from runtime.diagnosis.machine import installed

NEEDED = {  # as pyproject.toml has them
    "httptools": (0, 7),
    "llguidance": (1, 9),
    "msgspec": (0, 20),
    "prometheus-client": (0, 23),
    "starlette": (0, 50),
    "uvicorn": (0, 38),
    **({} if sys.platform == "win32" else {"uvloop": (0, 22)}),
}
COMPILED = ("httptools", "llguidance", "msgspec", "uvloop")  # may not fit this machine; the others are Python
SHARED = "llguidance"  # comes with the extra `guide`, too, and alone does not show that anybody means to serve


@dataclass(frozen=True, slots=True)
class ServerPackages:
    """The packages of the extra `serve`.

    Attributes:
        versions: Those that are installed.
        missing: Those that are not.
        import_errors: Why one that is installed cannot be imported.
    """

    versions: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = tuple(NEEDED)
    import_errors: Mapping[str, str] = field(default_factory=dict)

    @property
    def wanted(self) -> bool:
        """Whether anything shows that the extra was meant to be installed."""
        return any(name != SHARED for name in self.versions)

    def __str__(self) -> str:
        if not self.wanted:
            return "not installed (extra serve)"
        state = "does not work" if self.import_errors else "incomplete" if self.missing else "works"
        return f"{state}: {', '.join(f'{name} {version}' for name, version in self.versions.items())}"


def find_server_packages() -> ServerPackages:
    versions = installed(tuple(NEEDED))
    missing = tuple(name for name in NEEDED if name not in versions)
    problems = {name: import_error(name) for name in COMPILED if name in versions}
    return ServerPackages(versions, missing, {name: problem for name, problem in problems.items() if problem})


def import_error(name: str) -> str:
    """Why a module cannot be imported, in one line; "" if it can."""
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken binary raises anything
        return " ".join(str(error).split()) or type(error).__name__
    return ""

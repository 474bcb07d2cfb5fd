"""The variables by which Ray is set up; it reads them when it is imported."""

import os
import secrets
from pathlib import Path

MADE_GOOD = r".*(A worker died or was killed|infinite retries remaining)"  # what Ray would print on standard output


def prepare() -> None:
    """Send no usage statistics, print no deaths that are made good, and join a cluster with a token if there is one."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", MADE_GOOD)
    if is_elsewhere() and has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def is_elsewhere() -> bool:
    """Whether there is a cluster to join; else one of this machine alone begins and ends with the command."""
    return bool(os.environ.get("RAY_ADDRESS"))


def has_token() -> bool:
    return any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")) or token_file().exists()


def token_file() -> Path:
    """Where Ray writes a token, if it makes one."""
    return Path.home() / ".ray" / "auth_token"


def take_own_token() -> None:
    """For a cluster of this machine alone: Ray would write a token into the user's home."""
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

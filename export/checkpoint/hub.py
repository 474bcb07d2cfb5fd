"""Resolves a checkpoint's name to a folder: a local one, or the Hub's cache after a download."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from export.checkpoint import adapter
from export.checkpoint.settings import CONFIG, GENERATION
from export.checkpoint.tokenizer import TOKENIZER_CONFIG, tokenizer_files
from export.errors import ExportError, first_line

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
SAFETENSORS = ["model*.safetensors", "model.safetensors.index.json"]
PICKLES = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]
SETTINGS = [CONFIG, GENERATION, TOKENIZER_CONFIG, adapter.CONFIG]


@dataclass(frozen=True)
class Source:
    """An unchecked folder. `id` is a Hub id or the folder's name, `revision` the Hub's commit or ""."""

    id: str
    revision: str
    folder: Path


def find_source(name: str, *, revision: str | None = None) -> Source:
    """The folder of `name`, which is a folder or a Hub id; ExportError if it is neither."""
    path = Path(name).expanduser()
    if path.is_dir():
        if revision:
            raise ExportError(f"revision {revision} needs a Hub id, but {name} is a folder")
        return Source(path.resolve().name, "", path.resolve())
    if not HUB_ID.fullmatch(name):
        raise ExportError(f"no folder at {name}, and it is not a Hub id such as gpt2 or openai-community/gpt2-medium")
    folder = download(name, revision)
    return Source(name, folder.name, folder)


def download(name: str, revision: str | None) -> Path:
    """Download the settings, then the files that they name; pickles only if there are no safetensors."""
    folder = fetch(name, revision, SETTINGS)
    commit = folder.name  # a branch may move between two requests
    settings = read_if_there(folder / TOKENIZER_CONFIG)
    named = read_if_there(folder / CONFIG).get("tokenizer_class")
    files = tokenizer_files(None, {"tokenizer_class": named, **settings})
    fetch(name, commit, [*files, *SAFETENSORS, adapter.WEIGHTS[0]])
    if not list(folder.glob("model*.safetensors")) and not (folder / adapter.WEIGHTS[0]).exists():
        fetch(name, commit, [*PICKLES, adapter.WEIGHTS[1]])
    return folder


def read_if_there(path: Path) -> dict[str, Any]:
    """A file's JSON object, or {}; staging reports what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def fetch(name: str, revision: str | None, patterns: Iterable[str]) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except GatedRepoError:
        raise ExportError(f"{name} is gated; ask for access on the Hub, then: hf auth login") from None
    except RevisionNotFoundError:
        raise ExportError(f"{name} has no revision {revision} on the Hub") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ExportError(f"no folder at {name}, and no such model on the Hub (or it is private)") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise ExportError(
            f"{name} is not in the local cache and the Hub cannot be reached ({first_line(error)}); "
            "give a folder instead, or try again online"
        ) from None

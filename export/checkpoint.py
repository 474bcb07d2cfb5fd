"""A GPT-2 checkpoint: found in a folder or on the Hub, and loaded without running anybody's code."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
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
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from export.architecture import parse_config
from export.errors import ExportError

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
SAFETENSORS = ["model*.safetensors", "model.safetensors.index.json"]
PICKLES = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]
SMALL_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
]


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a GPT-2 whose every setting is understood. `id` is its Hub id, or the name of its folder."""

    id: str
    revision: str
    folder: Path
    config: GPT2Config

    def load_model(self) -> GPT2LMHeadModel:
        """The model in float32 with eager attention, every weight from the checkpoint."""
        try:
            model, loading = GPT2LMHeadModel.from_pretrained(
                self.folder,
                config=self.config,
                dtype=torch.float32,
                attn_implementation="eager",
                weights_only=True,
                output_loading_info=True,
                local_files_only=True,
            )
        except Exception as error:  # safetensors, pickle and transformers each have their own
            raise ExportError(f"{self.id}: its weights cannot be loaded: {first_line(error)}") from None
        if loading["missing_keys"]:
            names = sorted(loading["missing_keys"])
            raise ExportError(f"{self.id}: its weights lack {len(names)} tensors, {names[0]} among them")
        for parameter in model.parameters():  # out of the mapped file, whose pages would stay beside a converted copy
            parameter.data = parameter.data.clone()
        return model.eval()

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                self.folder, use_fast=True, trust_remote_code=False, local_files_only=True
            )
        except Exception as error:
            raise ExportError(f"{self.id}: its tokenizer cannot be loaded: {first_line(error)}") from None
        if not tokenizer.is_fast:
            raise ExportError(f"{self.id}: {type(tokenizer).__name__} has no tokenizer.json form")
        if len(tokenizer) > self.config.vocab_size:
            raise ExportError(
                f"{self.id}: its tokenizer has {len(tokenizer):,} entries, its wte only {self.config.vocab_size:,}"
            )
        return tokenizer

    def weight_files(self) -> list[Path]:
        """The files the weights are read from: safetensors where there are any."""
        for patterns in (SAFETENSORS, PICKLES):
            files = sorted(file for pattern in patterns for file in self.folder.glob(pattern))
            if any(file.suffix != ".json" for file in files):
                return files
        raise ExportError(f"{self.id}: no model.safetensors or pytorch_model.bin in {self.folder}")

    def weights_sha256(self) -> str:
        """SHA-256 over the weight files, in the order of their names."""
        digest = hashlib.sha256()
        for path in self.weight_files():
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()


def find_checkpoint(name: str, *, revision: str | None = None) -> Checkpoint:
    """`name` is a folder, else a Hub id; ExportError if it is neither, or no GPT-2 that both graphs honour."""
    path = Path(name).expanduser()
    if path.is_dir():
        if revision:
            raise ExportError(f"--revision {revision} needs a Hub id, and {name} is a folder")
        folder, source, commit = path, path.resolve().name, ""
    else:
        folder = download(name, revision)
        source, commit = name, folder.name
    checkpoint = Checkpoint(source, commit, folder, read_config(name, folder))
    checkpoint.weight_files()
    return checkpoint


def download(name: str, revision: str | None) -> Path:
    """The Hub's files for `name`, in its cache; safetensors, and pickles only where there are none."""
    if not HUB_ID.fullmatch(name):
        raise ExportError(f"no folder at {name}, and it is no Hub id such as gpt2 or openai-community/gpt2-medium")
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=SMALL_FILES + SAFETENSORS))
        if not list(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=SMALL_FILES + PICKLES))
        return folder
    except GatedRepoError:
        raise ExportError(f"{name} is gated; ask for access on the Hub, then: huggingface-cli login") from None
    except RevisionNotFoundError:
        raise ExportError(f"{name} has no revision {revision} on the Hub") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ExportError(f"no folder at {name}, and no such model on the Hub (or it is private)") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise ExportError(
            f"{name} is not in the local cache and the Hub cannot be reached ({first_line(error)}); "
            "give a folder instead, or try again online"
        ) from None


def read_config(name: str, folder: Path) -> GPT2Config:
    """The checkpoint's config, refused by name if another architecture or a setting that is not honoured."""
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ExportError(f"{name} is not a checkpoint: it has no config.json") from None
    except ValueError as error:
        raise ExportError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ExportError(f"{path} is not a JSON object")
    return parse_config(name, content)


def first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__

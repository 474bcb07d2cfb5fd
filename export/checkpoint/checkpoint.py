"""Checkpoint: a fully checked GPT-2 checkpoint, and how to find and load one."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from export.checkpoint import adapter as adapters
from export.checkpoint.adapter import Adapter
from export.checkpoint.hub import Source, find_source
from export.checkpoint.settings import Settings, read_settings
from export.checkpoint.staging import StagingFolder
from export.checkpoint.tokenizer import load_tokenizer, stage_tokenizer
from export.checkpoint.weights import check_weights, counted, files_sha256, has_weights, stage_weights
from export.errors import ExportError, first_line
from export.majors import without_bars


@dataclass(frozen=True)
class Checkpoint:
    """A GPT-2 checkpoint whose settings all graphs support.

    Attributes:
        id: Its Hub id, or the name of its folder.
        revision: The Hub's commit, or "".
        staging: The files that are read, and nothing else of the checkpoint.
        config: The config of the model that `load_model` returns.
        adapter: The adapter that is merged into it, or None.
        notes: What was left out of the checkpoint's files, one line each.
    """

    id: str
    revision: str
    staging: StagingFolder
    config: GPT2Config
    settings: Settings
    weights: tuple[Path, ...]
    tokenizer_class: type[PreTrainedTokenizerFast]
    adapter: Adapter | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.staging.path

    def load_model(self) -> GPT2LMHeadModel:
        """The model in float32 with eager attention, all weights from the checkpoint, the adapter merged."""
        try:
            with without_bars():
                model, loading = GPT2LMHeadModel.from_pretrained(
                    self.folder,
                    config=self.settings.config,
                    dtype=torch.float32,
                    attn_implementation="eager",
                    weights_only=True,
                    output_loading_info=True,
                    local_files_only=True,
                )
        except Exception as error:  # safetensors, pickle and transformers raise their own exceptions
            raise ExportError(f"{self.id}: its weights cannot be loaded: {first_line(error)}") from None
        if loading["missing_keys"]:
            raise ExportError(f"{self.id}: its weights lack {counted(sorted(loading['missing_keys']))}")
        for parameter in model.parameters():  # off the mapped file, whose pages would stay beside a converted copy
            parameter.data = parameter.data.clone()
        return adapters.merge(model.eval(), self.adapter, self.config) if self.adapter else model.eval()

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """transformers' tokenizer, changed so that it adds nothing after a text."""
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer, notes = load_tokenizer(self.id, self.folder, self.tokenizer_class, self.config)
        self.notes.extend(notes)
        return tokenizer

    def generation_config(self) -> GenerationConfig:
        return GenerationConfig(**self.settings.generation)

    def weights_sha256(self) -> str:
        """SHA-256 over the weight files, in the order of their names."""
        return files_sha256(self.weights)


def find_checkpoint(name: str, *, revision: str | None = None, adapter: str | None = None) -> Checkpoint:
    """Find a checkpoint and check every file of it.

    Args:
        name: A folder, else a Hub id. It may hold only an adapter, which then names its base.
        revision: A branch, tag or commit of the Hub id.
        adapter: A folder or a Hub id with an adapter to merge; one in the checkpoint's own folder is merged anyway.

    Raises:
        ExportError: It is neither, not a supported GPT-2, or damaged.
    """
    source = find_source(name, revision=revision)
    merged = None if adapter is None else find_source(adapter)
    if (source.folder / adapters.CONFIG).is_file():
        if merged:
            raise ExportError(
                f"{name} has an adapter of its own, and {adapter} would be a second one; merge one at a time"
            )
        merged = source
        if not has_weights(source.folder):
            base, base_revision = adapters.base_of(source.folder)
            source = find_source(base, revision=base_revision)
    return stage(source, merged)


def stage(source: Source, merged: Source | None) -> Checkpoint:
    """Stage the known files and check each."""
    staging = StagingFolder(source.folder, source.id)
    settings = read_settings(staging)
    weights = stage_weights(staging)
    tokenizer_class = stage_tokenizer(staging, settings.config)
    notes = [*settings.notes, *check_weights(source.id, settings.config, weights)]
    adapter = adapters.open_adapter(merged.id, merged.revision, merged.folder) if merged else None
    config = adapters.untied(settings.config) if adapter and adapter.unties else settings.config
    if adapter:
        adapters.import_peft()  # fails before the long work if peft is missing
        notes.append(f"{adapter.describe()} merged into {source.id}")
    return Checkpoint(
        source.id, source.revision, staging, config, settings, tuple(weights), tokenizer_class, adapter, notes
    )

"""Adapters (LoRA and its relatives): checked, and merged into the weights of their base model."""

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from export.checkpoint.staging import StagingFolder
from export.checkpoint.weights import check_finite, counted, files_sha256, read_tensors
from export.errors import ExportError, first_line
from export.majors import MAJOR
from runtime.errors import command

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
MERGED = ("LORA", "ADALORA", "IA3", "VERA", "FOURIERFT", "LN_TUNING")  # peft supports no others for GPT-2's Conv1D
TASKS = (None, "CAUSAL_LM")
OF_TRAINING = {"corda_config", "eva_config", "loftq_config", "lora_ga_config", "runtime_config"}
ELSEWHERE = {"auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version"}
CODE = "megatron_core"  # names a module that peft imports if there is a megatron_config
STARTS = {"gaussian", "eva", "orthogonal", "pissa", "olora"}  # of init_lora_weights; others need more than weights
REDONE = {"pissa", "olora"}  # they change the base's weights, the same way each time
EMBEDDINGS = (".wte.", ".lm_head.")
MOST_ERROR = 1e-4  # relative error of logits; merging in float32 was measured at 3e-7
PROBE = 16  # tokens


@dataclass(frozen=True)
class Adapter:
    """An adapter of a base model. `unties`: it changes one of `wte` and `lm_head`, which the base may tie."""

    id: str
    revision: str
    staging: StagingFolder
    settings: dict[str, Any]
    files: tuple[Path, ...]
    unties: bool

    @property
    def kind(self) -> str:
        return str(self.settings["peft_type"])

    def sha256(self) -> str:
        """The SHA-256 over adapter_config.json and the weights."""
        return files_sha256([self.staging.source / CONFIG, *self.files])

    def describe(self) -> str:
        rank = f", r {self.settings['r']}" if isinstance(self.settings.get("r"), int) else ""
        return f"{self.kind}{rank} of {self.id}"


def open_adapter(name: str, revision: str, folder: Path) -> Adapter:
    """The adapter in `folder`; ExportError for one that cannot be merged."""
    staging = StagingFolder(folder, name)
    given = staging.read_json(CONFIG)
    if given is None:
        raise ExportError(f"{name} is not an adapter: it has no {CONFIG}")
    settings = checked(name, given)
    staging.write_json(CONFIG, settings)
    files = staging.add(next(([weights] for weights in WEIGHTS if staging.has(weights)), []))
    if not files:
        raise ExportError(f"{name}: no {' or '.join(WEIGHTS)} beside its {CONFIG}")
    keys = set()
    for key, tensor in read_tensors(name, files):
        check_finite(f"{name}: {key}", tensor)
        keys.add(f".{key}")
    unties = any(part in key for key in keys for part in EMBEDDINGS)
    return Adapter(name, revision, staging, settings, tuple(files), unties)


def base_of(folder: Path) -> tuple[str, str | None]:
    """(name, revision) of the base that an adapter was trained on."""
    given = StagingFolder(folder, folder.name).read_json(CONFIG) or {}
    name, revision = given.get("base_model_name_or_path"), given.get("revision")
    if not isinstance(name, str) or not name:
        both = command("python", "-m", "export", "BASE", "--adapter", folder, "--output", "DIR")
        raise ExportError(f"{folder} is an adapter that names no base; name it: {both}")
    return name, revision if isinstance(revision, str) else None


def checked(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The settings for peft, without code or training settings; ExportError for what cannot be merged."""
    kind = given.get("peft_type")
    if kind not in MERGED:
        raise ExportError(
            f"{name}: peft_type must be one of {', '.join(MERGED)} (no other can be merged), got {kind!r}"
        )
    if given.get("task_type") not in TASKS:
        raise ExportError(f"{name}: task_type must be CAUSAL_LM, got {given['task_type']!r}")
    start = given.get("init_lora_weights", True)
    if isinstance(start, str) and start not in STARTS:
        raise ExportError(f"{name}: init_lora_weights must be one of {', '.join(sorted(STARTS))}, got {start!r}")
    for field, value in given.items():
        odd = field == "layer_replication" or field.startswith("alora_")
        if value and (odd or (field.endswith("_config") and field not in OF_TRAINING)):
            raise ExportError(f"{name}: {field} is not supported, got {value!r}")
    kept = {k: v for k, v in given.items() if k not in {*OF_TRAINING, *ELSEWHERE, CODE} and v is not None}
    return {**kept, "init_lora_weights": True} if start in STARTS - REDONE else kept


def untied(config: GPT2Config) -> GPT2Config:
    other = copy.deepcopy(config)
    other.tie_word_embeddings = False
    return other


def merge(model: GPT2LMHeadModel, adapter: Adapter, config: GPT2Config) -> GPT2LMHeadModel:
    """Merge the adapter into `model`, and check its logits against the adapter applied without merging."""
    peft = import_peft()
    if model.config.tie_word_embeddings and not config.tie_word_embeddings:
        model.lm_head.weight = torch.nn.Parameter(model.transformer.wte.weight.detach().clone())
        model.config.tie_word_embeddings = False
    ids = torch.arange(min(PROBE, config.n_positions))[None] % config.vocab_size
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            beside = attach(peft, model, adapter)
            expected = beside(ids).logits
            merged: GPT2LMHeadModel = beside.merge_and_unload(safe_merge=True).eval()
            found = merged(ids).logits
    except ExportError:
        raise
    except Exception as error:  # peft, torch and safetensors raise their own exceptions
        raise ExportError(f"{adapter.id}: it cannot be merged: {first_line(error)}") from None
    apart = float((found - expected).norm() / expected.norm())
    if not apart <= MOST_ERROR:  # True for NaN
        raise ExportError(f"{adapter.id}: merging it changes the logits by {apart:.1e} (at most {MOST_ERROR:.0e})")
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
    return merged


def attach(peft: Any, model: GPT2LMHeadModel, adapter: Adapter) -> Any:
    """peft's model of base and adapter; ExportError unless all tensors of the adapter fit the base."""
    kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[adapter.kind]
    config = kind(**{**adapter.settings, "inference_mode": True})
    both = peft.PeftModel(model, config)
    loaded = both.load_adapter(str(adapter.staging.path), "default", torch_device="cpu")
    stray = sorted(loaded.unexpected_keys)
    if stray:
        raise ExportError(f"{adapter.id}: its base has no place for {counted(stray)}")
    absent = sorted(key for key in loaded.missing_keys if "default" in key.split("."))
    if absent:
        raise ExportError(f"{adapter.id}: it lacks {counted(absent)}")
    return both.eval()


def import_peft() -> Any:
    try:
        import peft
    except ImportError:
        extra = "adapter" if MAJOR < 5 else "adapter5"
        raise ExportError(f'merging an adapter needs peft; install it: pip install "gpt2-onnx[{extra}]"') from None
    return peft

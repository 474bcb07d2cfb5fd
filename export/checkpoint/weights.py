"""Finds a checkpoint's weight files, and checks their tensors against its config: names, shapes, finite numbers."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import safe_open
from transformers import GPT2Config, GPT2LMHeadModel

from export.architecture import describe
from export.checkpoint.staging import StagingFolder, plain_name
from export.errors import ExportError, first_line
from runtime.bundle.architecture import count_parameters

PREFIX = "transformer."  # which the released gpt2 leaves out
BUFFERS = (".attn.bias", ".attn.masked_bias")  # from older releases; they are not weights
TIED = "lm_head.weight"
LEAST_BYTES = 2  # of a parameter
FEW_LAYERS, MANY_TIMES = 64, 16  # up to these it is said tensor by tensor, which names what is missing
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SAFETENSORS = ["model.safetensors", "model.safetensors.index.json"]
PICKLES = ["pytorch_model.bin", "pytorch_model.bin.index.json"]


def stage_weights(staging: StagingFolder) -> list[Path]:
    """Stage the weight files that transformers would read: a single file, else shards, else pickles."""
    for name in (*SAFETENSORS, *PICKLES):
        if staging.has(name):
            return sorted(staging.add([name, *shards(staging, name)]))
    raise ExportError(f"{staging.name}: no model.safetensors or pytorch_model.bin in {staging.source}")


def has_weights(folder: Path) -> bool:
    """Whether a folder has weight files."""
    return any((folder / name).is_file() for name in (*SAFETENSORS, *PICKLES))


def shards(staging: StagingFolder, name: str) -> list[str]:
    """The files that an index names, each in the checkpoint's own folder; empty for a single file."""
    if not name.endswith(".index.json"):
        return []
    weight_map = (staging.read_json(name) or {}).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ExportError(f"{staging.name}: {name} has no weight_map")
    found = sorted({str(shard) for shard in weight_map.values()})
    kind = SAFETENSORS[0] if name in SAFETENSORS else PICKLES[0]
    for shard in found:
        if Path(shard).suffix != Path(kind).suffix:
            raise ExportError(f"{staging.name}: {name} names {shard!r}, which is not a {Path(kind).suffix} file")
        if not staging.has(plain_name(shard, staging.name)):
            raise ExportError(f"{staging.name}: {name} names {shard}, which is missing; download it again")
    return found


def files_sha256(paths: Iterable[Path]) -> str:
    """SHA-256 over files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def read_tensors(name: str, paths: Iterable[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor, memory-mapped and not copied; ExportError for a file that does not hold weights."""
    for path in paths:
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    for key in file.keys():  # noqa: SIM118  (not a dict)
                        yield key, file.get_tensor(key)
            elif path.suffix != ".json":
                mapped = is_zipfile(path)  # the format from before PyTorch 1.6 is not a zip
                yield from tensors_of(torch.load(path, map_location="cpu", mmap=mapped, weights_only=True))
        except Exception as error:  # safetensors, zip and pickle raise their own exceptions
            raise ExportError(f"{name}: its weights cannot be loaded: {path.name}: {first_line(error)}") from None


def tensors_of(content: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a state dict."""
    if not isinstance(content, dict):
        raise TypeError(f"it holds a {type(content).__name__}, not a dictionary of tensors")
    for key, tensor in content.items():
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise TypeError(f"it holds {key!r}: a {type(tensor).__name__}, not a tensor")
        yield key, tensor


def check_weights(name: str, config: GPT2Config, paths: Sequence[Path]) -> list[str]:
    """Notes on tensors that GPT-2 does not have; ExportError for missing, extra, misshapen or non-finite ones."""
    check_counts(name, config, sum(path.stat().st_size for path in paths))
    expected = expected_shapes(config)
    seen, unknown = set[str](), list[str]()
    for given, tensor in read_tensors(name, paths):
        key = full_name(given, expected)
        if key in expected:
            check_tensor(f"{name}: {given}", tensor, expected[key])
            seen.add(key)
        elif given != TIED and not given.endswith(BUFFERS):
            unknown.append(given)
    check_names(name, config, missing=expected.keys() - seen, unknown=unknown)
    return [f"left out of its weights: {counted(unknown)} (unknown to GPT-2)"] if unknown else []


def check_counts(name: str, config: GPT2Config, size: int) -> None:
    """Raise ExportError for sizes that no weights of `size` bytes can have, before memory is taken for them."""
    count = count_parameters(describe(config, parameters=0))
    if config.n_layer > FEW_LAYERS and count * LEAST_BYTES > MANY_TIMES * size:
        raise ExportError(f"{name}: its config.json makes {count:,} parameters, far more than {size:,} bytes can hold")


def counted(names: Sequence[str]) -> str:
    """How many tensors, and the first of them."""
    return f"1 tensor, {names[0]}" if len(names) == 1 else f"{len(names):,} tensors, including {names[0]}"


def full_name(name: str, expected: dict[str, tuple[int, ...]]) -> str:
    return name if name in expected else f"{PREFIX}{name}"


def expected_shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def check_tensor(what: str, tensor: torch.Tensor, expected: tuple[int, ...]) -> None:
    """Raise ExportError unless a tensor has the expected shape, a known dtype and finite values."""
    found = tuple(tensor.shape)
    if found != expected:
        hint = "; it is transposed, as for nn.Linear, but GPT-2 uses Conv1D" if found == expected[::-1] else ""
        raise ExportError(f"{what} has shape {list(found)}, but its config.json says {list(expected)}{hint}")
    if tensor.dtype not in DTYPES:
        read = ", ".join(map(dtype_name, DTYPES))
        raise ExportError(f"{what} is {dtype_name(tensor.dtype)}; readable dtypes are {read}")
    check_finite(what, tensor)


def check_finite(what: str, tensor: torch.Tensor) -> None:
    finite = tensor.isfinite()
    if not finite.all():
        raise ExportError(f"{what} holds {int((~finite).sum()):,} numbers that are NaN or infinite")


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_names(name: str, config: GPT2Config, *, missing: Iterable[str], unknown: Iterable[str]) -> None:
    absent = sorted(missing)
    if absent:
        raise ExportError(f"{name}: its weights lack {counted(absent)}")
    layers = sorted(key for key in unknown if key.removeprefix(PREFIX).startswith("h."))
    if layers:
        raise ExportError(f"{name}: its weights include {layers[0]}, but its config.json has n_layer {config.n_layer}")

"""Makes a checkpoint of a bundle again: its config, its tokenizer, and the float32 weights of the reference graph."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from safetensors.numpy import save_file

from export.checkpoint import Checkpoint, find_checkpoint
from export.checkpoint.tokenizer import TOKENIZER, TOKENIZER_CONFIG
from runtime.bundle.bundle import Bundle
from runtime.errors import BundleError

SETTINGS = ("config.json", "generation_config.json", TOKENIZER, TOKENIZER_CONFIG)
WEIGHTS = "model.safetensors"


def write_checkpoint(bundle: Bundle, folder: Path) -> Checkpoint:
    """Write the checkpoint into a new folder, and check it as any other is checked."""
    folder.mkdir()
    for name in SETTINGS:
        if name in bundle.manifest.files:
            shutil.copyfile(bundle.folder / name, folder / name)
    save_file(read_weights(bundle.graph_path("reference")), folder / WEIGHTS, metadata={"format": "pt"})
    source = bundle.manifest.source
    return replace(find_checkpoint(str(folder)), id=source.id, revision=source.revision)


def read_weights(path: Path) -> dict[str, NDArray[np.float32]]:
    """The tensors that the graph at `path` reads from its weights file, under the checkpoint's names."""
    found: dict[str, NDArray[np.float32]] = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            try:
                offset, shape = int(place["offset"]), tuple(tensor.dims)
                found[tensor.name] = np.memmap(path.parent / place["location"], np.float32, "r", offset, shape)
            except (KeyError, OSError, ValueError) as error:
                raise BundleError(f"{path}: {tensor.name} cannot be read ({error}); export the bundle again") from None
    return found

"""One weights file for every float32 graph of a bundle."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch

ALIGNMENT = 4096  # of a page, so that a tensor can be mapped


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in the weights file."""

    shape: tuple[int, ...]
    offset: int
    length: int


def write_weights(tensors: Mapping[str, torch.Tensor], path: Path) -> dict[str, StoredTensor]:
    """Write float32 tensors one behind the other; a tensor known under two names is written once."""
    stored: dict[str, StoredTensor] = {}
    written: dict[int, StoredTensor] = {}
    with path.open("wb") as file:
        for name, tensor in tensors.items():
            if tensor.data_ptr() not in written:
                file.write(b"\0" * (-file.tell() % ALIGNMENT))
                offset = file.tell()
                file.write(tensor.detach().contiguous().numpy().tobytes())
                written[tensor.data_ptr()] = StoredTensor(tuple(tensor.shape), offset, file.tell() - offset)
            stored[name] = written[tensor.data_ptr()]
    return stored


def external_tensor(name: str, stored: StoredTensor, location: str) -> onnx.TensorProto:
    """An initializer that points into the weights file `location`."""
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=stored.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", stored.offset), ("length", stored.length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor

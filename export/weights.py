"""Writes weights files: tensors one after the other, page-aligned, to which graphs point."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import torch

from export.quantization.codes import QuantizedWeights

KINDS = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.uint8: onnx.TensorProto.UINT8,
}
ALIGNMENT = 4096  # a page, so that a tensor can be memory-mapped


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is stored: in `file`, beside the graphs."""

    file: str
    shape: tuple[int, ...]
    offset: int
    length: int
    kind: int = onnx.TensorProto.FLOAT

    def viewed(self, *shape: int) -> "StoredTensor":
        """The same bytes in another shape."""
        return replace(self, shape=shape)


def write_weights(tensors: Mapping[str, torch.Tensor], path: Path) -> dict[str, StoredTensor]:
    """Write tensors one after the other; a tensor with two names is written once."""
    stored: dict[str, StoredTensor] = {}
    written: dict[int, StoredTensor] = {}
    with path.open("wb") as file:
        for name, tensor in tensors.items():
            if tensor.data_ptr() not in written:
                file.write(b"\0" * (-file.tell() % ALIGNMENT))
                offset = file.tell()
                file.write(tensor.detach().contiguous().numpy().tobytes())
                length = file.tell() - offset
                written[tensor.data_ptr()] = StoredTensor(
                    path.name, tuple(tensor.shape), offset, length, KINDS[tensor.dtype]
                )
            stored[name] = written[tensor.data_ptr()]
    return stored


def external_tensor(name: str, stored: StoredTensor) -> onnx.TensorProto:
    """An initializer that points into a weights file."""
    tensor = onnx.TensorProto(name=name, data_type=stored.kind, dims=stored.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", stored.file), ("offset", stored.offset), ("length", stored.length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def write_quantized(weights: QuantizedWeights, path: Path) -> dict[str, StoredTensor]:
    """Write the file; return where each tensor is in it, under every name and shape that a node uses."""
    content = dict(weights.tensors)
    for name, matrix in weights.matrices.items():
        content[f"{name}.rows"] = torch.from_numpy(matrix.packed())
        content[f"{name}.scales"] = torch.from_numpy(matrix.kernel_scales())
        if matrix.scale_an_output and matrix.bits == 8:  # as integer products need them
            content[f"{name}.output_scales"] = torch.from_numpy(matrix.scales[:, 0].copy())
            content[f"{name}.output_sums"] = torch.from_numpy(matrix.output_sums())
    stored = write_weights(content, path)
    for name, matrix in weights.matrices.items():
        outputs, blocks = matrix.kernel_scales().shape
        stored[f"{name}.blocks"] = stored[f"{name}.rows"].viewed(
            outputs, blocks, matrix.kernel_block * matrix.bits // 8
        )
    return stored

"""The weights file of a precision."""

from pathlib import Path

import torch

from export.codes import QuantizedWeights
from export.weights import StoredTensor, write_weights


def write_quantized(weights: QuantizedWeights, path: Path) -> dict[str, StoredTensor]:
    """Write the file; where each tensor lies in it, under every name and shape by which a node wants it."""
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

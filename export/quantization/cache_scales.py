"""Scales of int8 keys and values: what one step of each channel's codes is worth, found in the model's own texts.

A channel's scale is its largest size over the texts, divided by 127. The texts fill the context, as keys and values
differ with their positions. A larger one in another text is clipped; docs/precisions.md has what other choices cost.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.architecture import describe, start_id
from export.checkpoint import Checkpoint
from export.errors import ExportError
from export.progress import Progress
from export.quantization.calibration import sample_texts
from export.quantization.codes import Scales
from runtime.graphs.decode import DecodeGraph
from runtime.graphs.kinds import runs
from runtime.graphs.work import Slots

CALIBRATION, JUDGED = 8, 8  # texts; a bound of 0.1 % takes thousands of tokens to judge
LARGEST_CODE = 127
LEAST = 1e-30  # a channel that is always 0 has a scale, too


@dataclass(frozen=True)
class CacheScales:
    """Scales, and texts [JUDGED, n_positions] that were not used to find them."""

    scales: Scales
    texts: NDArray[np.int64]


def check_cache(cache: str | None) -> bool:
    """Whether int8 keys and values are asked for; ExportError for anything else, or where they could not be proved."""
    if cache not in (None, "int8"):
        raise ExportError(f"cache must be 'int8' or None, got {cache!r}")
    if cache and not runs("int8_cache"):
        raise ExportError("int8 keys and values need ONNX Runtime 1.32 or newer: pip install 'onnxruntime>=1.32'")
    return cache is not None


def calibrate_cache(checkpoint: Checkpoint, path: Path, progress: Progress) -> CacheScales:
    """Scales from texts that the checkpoint's float32 decode graph at `path` writes."""
    architecture = describe(checkpoint.config, parameters=1)
    slots, length = DecodeGraph(path, architecture).slots(CALIBRATION + JUDGED), architecture.n_positions
    texts = sample_texts(
        slots, start_id(checkpoint.config), length, lambda done: progress.count(done, length, "tokens")
    )
    return CacheScales(find_scales(slots, length - 1), texts[CALIBRATION:])


def find_scales(slots: Slots, length: int) -> Scales:
    """The scales [n_head, 1, head_size] of what the first slots hold, each `length` tokens."""
    sizes: Scales = {}
    for slot in range(CALIBRATION):
        for name, part in slots.cache(slot, length).items():
            size = np.abs(part).max(axis=(0, 2))[:, None]  # [n_head, 1, head_size]
            sizes[name] = np.maximum(size, sizes.get(name, LEAST))
    return {name: (size / LARGEST_CODE).astype(np.float32) for name, size in sizes.items()}

"""From a folder to a model."""

import logging
import os
from pathlib import Path

from runtime.bundle import open_bundle, weights_verified
from runtime.model import Model
from runtime.options import check_device, check_draft_precision, check_precision, check_threads

MODEL_VARIABLE = "GPT2_ONNX_MODEL"
DEFAULT_MODEL = "models/gpt2"
logger = logging.getLogger("runtime")


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    precision: str = "fp32",
    draft: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    verify: bool = True,
) -> Model:
    """Load a bundle.

    Args:
        path: The bundle's folder; else `GPT2_ONNX_MODEL`, else `models/gpt2` under the current folder.
        precision: Of the decode graph: `"fp32"` computes what PyTorch does; `"int8"` and `"int4"`, in bundles that
            were exported with them, are faster and smaller, and nearly the same.
        draft: A lower precision of the same bundle that drafts for this one: more memory, and several tokens out of a
            run. What comes out stays the same.
        device: `"auto"` or `"cpu"`.
        threads: Threads of one call, 1 or more; by default the CPUs that this process may use.
        verify: Check the SHA-256 of every file that it reads; sizes and presence of all are checked in any case.

    Raises:
        BundleError: The bundle is missing, damaged, newer than this release, not a bundle, or lacks the precision.
        ValueError: An option out of its range.

    Example:
        >>> runtime.load(os.environ["GPT2_ONNX_MODEL"], device="cpu", threads=1).device
        'cpu'
    """
    precision, draft = check_precision(precision), check_draft_precision(draft, precision)
    device, threads = check_device(device), check_threads(threads)
    bundle = open_bundle(find_model(path), verify=verify)
    with weights_verified(bundle, filter(None, (precision, draft)) if verify else ()):
        model = Model(bundle, precision=precision, device=device, threads=threads, draft=draft)
    logger.info("%s runs in %s on %s", bundle.folder, precision, device)
    return model


def find_model(path: str | os.PathLike[str] | None) -> Path:
    """The folder a caller means, whether or not anything is there."""
    return Path(path or os.environ.get(MODEL_VARIABLE) or DEFAULT_MODEL)

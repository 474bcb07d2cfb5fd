"""`runtime.complete`: a model that is loaded at the first call and kept."""

import logging
import os
import threading
from pathlib import Path
from typing import Unpack, overload

from runtime.checks import check_device, check_precision
from runtime.loading import find_model, load
from runtime.model import BATCH_SIZE, Model, Prompts
from runtime.text.completion import Completion
from runtime.text.options import GenerationOptions, check_settings

_loaded: dict[tuple[object, ...], dict[str | None, Model]] = {}  # by place, then by precision; None is the default
_lock = threading.Lock()
logger = logging.getLogger("runtime")


Folder = str | os.PathLike[str] | None


@overload
def complete(
    prompt: str,
    *,
    model: Folder = None,
    precision: str | None = None,
    device: str = "auto",
    batch_size: int = BATCH_SIZE,
    **options: Unpack[GenerationOptions],
) -> Completion: ...
@overload
def complete(
    prompt: Prompts,
    *,
    model: Folder = None,
    precision: str | None = None,
    device: str = "auto",
    batch_size: int = BATCH_SIZE,
    **options: Unpack[GenerationOptions],
) -> list[Completion]: ...
def complete(
    prompt: str | Prompts,
    *,
    model: Folder = None,
    precision: str | None = None,
    device: str = "auto",
    batch_size: int = BATCH_SIZE,
    **options: Unpack[GenerationOptions],
) -> Completion | list[Completion]:
    """Continue a prompt, or several side by side; the model is loaded once and kept.

    Args:
        prompt: Text, or a list of texts; an empty text starts from `<|endoftext|>`.
        model: A bundle's folder; else `GPT2_ONNX_MODEL`, else `models/gpt2` under the current folder.
        precision: `"fp32"`, `"fp16"`, `"int8"` or `"int4"`, as in `load`.
        device: `"auto"`, `"cpu"`, `"cuda"` or `"cuda:1"`, as in `load`.
        batch_size: Of a list, how many prompts are under way at once, 1 to 1,024.
        options: See `GenerationOptions`.

    Returns:
        A completion; of a list of prompts a list, in their order.

    Raises:
        BundleError: The bundle is missing, damaged, newer than this release, or not a bundle.
        RuntimeError: CUDA was asked for and does not run here.
        ValueError: An option out of its range, or a prompt that leaves no room in the context.

    Example:
        >>> completion = runtime.complete("It was a bright cold day", max_new_tokens=32)
        >>> len(completion.token_ids)
        32
    """
    check_settings(options)  # before a model is loaded for nothing
    return kept_model(find_model(model), precision, device).complete(prompt, batch_size=batch_size, **options)


def in_child() -> None:
    """The lock may have been held by a thread that is not in the child; models know by themselves."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=in_child)


def kept_model(path: Path, precision: str | None, device: str, gpu_mem_limit: int | None = None) -> Model:
    folder = os.path.realpath(os.path.expanduser(path))  # noqa: PTH111  (pathlib's raises where there is no such user)
    place = folder, check_device(device), gpu_mem_limit
    precision = check_precision(precision)
    with _lock:
        kept = _loaded.setdefault(place, {})
        forget_replaced(kept)
        if precision is None and "fp32" in kept and kept["fp32"].device == "cpu":
            precision = "fp32"  # the default there
        if precision not in kept:
            model = load(path, precision=precision, device=device, gpu_mem_limit=gpu_mem_limit)
            kept[precision] = kept[model.precision] = model
        return kept[precision]


def forget_replaced(kept: dict[str | None, Model]) -> None:
    """Models whose folder holds another bundle by now: nobody else could load that one in their place."""
    for precision, model in list(kept.items()):
        if model.bundle.has_successor():
            logger.info("%s was replaced; it is loaded again", model.bundle.folder)
            del kept[precision]

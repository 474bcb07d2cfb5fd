"""`runtime.complete`: a model that is loaded at the first call and kept."""

import os
import threading
from pathlib import Path

from runtime.completion import Completion
from runtime.model import MAX_NEW_TOKENS, Model, find_model, load
from runtime.options import check_device

_loaded: dict[tuple[str, str], Model] = {}
_lock = threading.Lock()


def complete(
    prompt: str,
    *,
    model: str | os.PathLike[str] | None = None,
    device: str = "auto",
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Completion:
    """Continue `prompt` with the most likely tokens; the model is loaded once and kept.

    Args:
        prompt: Text; an empty one starts from `<|endoftext|>`.
        model: A bundle's folder; else `GPT2_ONNX_MODEL`, else `models/gpt2` under the current folder.
        device: `"auto"` or `"cpu"`.
        max_new_tokens: Tokens to generate at most, 1 or more; the end of the context ends a text too.

    Raises:
        BundleError: The bundle is missing, damaged, newer than this release, or not a bundle.
        ValueError: An option out of its range, or a prompt that leaves no room in the context.

    Example:
        >>> print(runtime.complete("It was a bright cold day", max_new_tokens=32))  # doctest: +SKIP
    """
    return kept_model(find_model(model), device).complete(prompt, max_new_tokens=max_new_tokens)


def kept_model(path: Path, device: str) -> Model:
    key = os.path.realpath(path), check_device(device)
    with _lock:
        if key not in _loaded:
            _loaded[key] = load(path, device=device)
        return _loaded[key]

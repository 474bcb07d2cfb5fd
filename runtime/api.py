"""`runtime.load` loads a bundle; `runtime.complete` loads one on its first call and keeps it."""

import logging
import os
import threading
from pathlib import Path
from typing import Unpack, overload

from runtime.bundle.bundle import Bundle, find_folder, open_bundle, weights_verified
from runtime.bundle.place import Place, steadily
from runtime.bundle.same_files import check_untouched, names_read
from runtime.bundle.signature import check_signature, find_public_key
from runtime.checks import (
    check_arena_extend_strategy,
    check_cache,
    check_device,
    check_draft_precision,
    check_flag,
    check_gpu_mem_limit,
    check_precision,
    check_slots,
    check_threads,
)
from runtime.diagnosis.choice import find_placement
from runtime.model import BATCH_SIZE, Answers, Loading, Model, Prompts
from runtime.ort.placement import Placement
from runtime.text.completion import Completion
from runtime.text.several import CompleteOptions, check_several

MODEL_VARIABLE = "GPT2_ONNX_MODEL"
DEFAULT_MODEL = "models/gpt2"
ON_CUDA = ("fp16", "fp32")  # the precisions that CUDA serves
Folder = str | os.PathLike[str] | None
_loaded: dict[tuple[object, ...], dict[str | None, Model]] = {}  # by folder and options, then precision; None: default
_lock = threading.Lock()
logger = logging.getLogger("runtime")


def load(
    path: Folder = None,
    *,
    precision: str | None = None,
    draft: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    verify: bool = True,
    gpu_mem_limit: int | None = None,
    arena_extend_strategy: str | None = None,
    cuda_graph: bool = True,
    slots: int | None = None,
    prefix_cache: bool = True,
    cache: str | None = None,
    public_key: Folder = None,
) -> Model:
    """Load a bundle.

    Args:
        path: The bundle's folder; else `GPT2_ONNX_MODEL`, else `models/gpt2` under the current folder.
        precision: The decode graph's precision. `"fp32"` computes what PyTorch does; `"fp16"` is for CUDA; `"int8"`
            and `"int4"` are for the CPU: faster, smaller, and nearly the same. All but fp32 must have been exported.
            By default fp32, and on CUDA fp16 where the bundle has it.
        draft: A lower precision of the same bundle that drafts for this one, on the CPU: it takes more memory and
            gives several tokens per run. The output stays the same.
        device: `"cpu"`; `"cuda"`, or `"cuda:1"` for another card: that or an error; `"auto"`: CUDA where it works,
            else the CPU, and the log says which.
        threads: Threads per call on the CPU, 1 or more; by default the CPUs that this process may use.
        verify: Check the SHA-256 of every file that is read; presence and size of all files are always checked.
        gpu_mem_limit: Bytes of the card's memory that ONNX Runtime's arena may take for weights and intermediate
            results, 1 MiB or more; keys and values come on top. By default unlimited.
        arena_extend_strategy: How that arena grows: `"kNextPowerOfTwo"`, ONNX Runtime's default, or
            `"kSameAsRequested"`, which takes less memory and allocates more often.
        cuda_graph: Capture the steps of greedy decoding as CUDA graphs, where ONNX Runtime can.
        slots: The most texts at once, 1 to 1,024; others wait. Each takes memory for its keys and values as it grows,
            2 * n_layer * n_embd * 4 bytes a token (74 kB for GPT-2 small), a quarter of that with an int8 cache. By
            default as many as fill half of the memory that is left, if all of them fill the context.
        prefix_cache: Whether a text reads only what no text before it with the same beginning has read. In int8 and
            int4, and with an int8 cache, a text may come out otherwise by that, as nearly equal likelihoods are rounded
            otherwise.
        cache: What keys and values are kept in, on the CPU: `"float32"`, the default, or `"int8"`, which must have been
            exported: a quarter of the memory, faster where many or long texts go on, slower where prompts are read, and
            nearly the same text.
        public_key: A PEM file with an elliptic-curve public key; else `GPT2_ONNX_PUBLIC_KEY`. With one, a bundle is
            refused unless the private half signed it (`python -m export … --sign KEY`). Needs the extra `signing`.

    Raises:
        BundleError: The bundle is missing, damaged, newer than this release, not a bundle, lacks the precision or the
            int8 cache, or is not signed by the key that is asked for.
        MemoryError: The card has no room for the model, or the machine none for so many slots.
        RuntimeError: CUDA was asked for and does not run here, or ONNX Runtime is too old for an int8 cache; the
            message names the cause and the fix.
        ValueError: An option out of its range.

    Example:
        >>> runtime.load(os.environ["GPT2_ONNX_MODEL"], device="cpu", threads=1).device
        'cpu'
    """
    precision, threads, slots = check_precision(precision), check_threads(threads), check_slots(slots)
    asked = Placement(
        gpu_mem_limit=check_gpu_mem_limit(gpu_mem_limit),
        arena_extend_strategy=check_arena_extend_strategy(arena_extend_strategy),
        cuda_graph=check_flag("cuda_graph", cuda_graph),
    )
    cache = check_cache(cache, precision or "fp32")
    placement, why = choose(device, asked, precision, draft, cache)
    draft = check_served(precision or "fp32", draft, cache, placement)
    check_flag("prefix_cache", prefix_cache)
    key = find_public_key(public_key)
    if key and not verify:
        raise ValueError("verify must be True where a public key is given, as what is signed are hashes, got False")

    def load_once() -> Model:
        with Place(find_folder(find_model(path))).held() as place:
            bundle = open_bundle(place, verify=verify)
            if key:
                check_signature(bundle, key)
            served = precision or default_precision(bundle, placement)
            loading = Loading(bundle, served, placement, threads, draft, verify, slots, prefix_cache, cache)
            with weights_verified(bundle, loading.precisions if verify else ()):
                model = Model(loading, loading.make())
            check_untouched(bundle, names_read(bundle, loading.precisions))
            return model

    model = steadily(find_model(path), load_once)
    kept = " with an int8 cache" if cache == "int8" else ""
    logger.info("%s runs in %s%s on %s%s", model.bundle.folder, model.precision, kept, placement, why)
    return model


def choose(
    device: str, asked: Placement, precision: str | None, draft: str | None, cache: str
) -> tuple[Placement, str]:
    """Choose where to run, and say why; "auto" is the CPU for what only the CPU has."""
    alone = {"drafts": draft is not None, "an int8 cache": cache == "int8"}
    alone[str(precision)] = precision not in (None, *ON_CUDA)
    if device == "auto" and any(alone.values()):
        return asked, f", the only device with {next(name for name, wanted in alone.items() if wanted)}"
    return find_placement(device, asked)


def default_precision(bundle: Bundle, placement: Placement) -> str:
    """float16 on CUDA, if the bundle has it."""
    return "fp16" if placement.device == "cuda" and bundle.manifest.has_graph("decode", "fp16") else "fp32"


def check_served(precision: str, draft: str | None, cache: str, placement: Placement) -> str | None:
    """`draft`; ValueError unless the device has graphs for both precisions, and for the cache."""
    if placement.device == "cuda":
        if precision not in ON_CUDA:
            raise ValueError(f"precision must be {' or '.join(map(repr, ON_CUDA))} on CUDA, got {precision!r}")
        if draft is not None:
            raise ValueError(f"draft must be None on CUDA, got {draft!r}")
        if cache != "float32":
            raise ValueError(f"cache must be None or 'float32' on CUDA, got {cache!r}")
    return check_draft_precision(draft, precision)


def find_model(path: Folder) -> Path:
    """The folder the caller means, whether or not it exists."""
    return Path(path or os.environ.get(MODEL_VARIABLE) or DEFAULT_MODEL)


@overload
def complete(
    prompt: str,
    *,
    model: Folder = None,
    precision: str | None = None,
    device: str = "auto",
    cache: str | None = None,
    public_key: Folder = None,
    batch_size: int = BATCH_SIZE,
    n: None = None,
    **options: Unpack[CompleteOptions],
) -> Completion: ...
@overload
def complete(
    prompt: Prompts,
    *,
    model: Folder = None,
    precision: str | None = None,
    device: str = "auto",
    cache: str | None = None,
    public_key: Folder = None,
    batch_size: int = BATCH_SIZE,
    n: None = None,
    **options: Unpack[CompleteOptions],
) -> list[Completion]: ...
@overload
def complete(
    prompt: str,
    *,
    model: Folder = None,
    precision: str | None = None,
    device: str = "auto",
    cache: str | None = None,
    public_key: Folder = None,
    batch_size: int = BATCH_SIZE,
    n: int,
    **options: Unpack[CompleteOptions],
) -> list[Completion]: ...
@overload
def complete(
    prompt: Prompts,
    *,
    model: Folder = None,
    precision: str | None = None,
    device: str = "auto",
    cache: str | None = None,
    public_key: Folder = None,
    batch_size: int = BATCH_SIZE,
    n: int,
    **options: Unpack[CompleteOptions],
) -> list[list[Completion]]: ...
def complete(
    prompt: str | Prompts,
    *,
    model: Folder = None,
    precision: str | None = None,
    device: str = "auto",
    cache: str | None = None,
    public_key: Folder = None,
    batch_size: int = BATCH_SIZE,
    n: int | None = None,
    **options: Unpack[CompleteOptions],
) -> Answers:
    """Continue one prompt, or several in a batch; the model is loaded once and kept.

    Args:
        prompt: Text, or a list of texts; an empty text starts from `<|endoftext|>`.
        model: A bundle's folder; else `GPT2_ONNX_MODEL`, else `models/gpt2` under the current folder.
        precision: `"fp32"`, `"fp16"`, `"int8"` or `"int4"`, as in `load`.
        device: `"auto"`, `"cpu"`, `"cuda"` or `"cuda:1"`, as in `load`.
        cache: `"float32"` or `"int8"`, as in `load`.
        public_key: The key that must have signed the bundle, as in `load`.
        batch_size: How many prompts of a list run at once, 1 to 1,024.
        n: How many completions of each prompt, as in `Model.complete`.
        options: See `CompleteOptions` and `GenerationOptions`.

    Returns:
        A completion; for a list of prompts, a list in the same order. With `n`, lists of completions instead.

    Raises:
        BundleError: The bundle is missing, damaged, newer than this release, or not a bundle.
        RuntimeError: CUDA was asked for and does not run here.
        ValueError: An option out of its range, or a prompt that leaves no room in the context.

    Example:
        >>> completion = runtime.complete("It was a bright cold day", max_new_tokens=32)
        >>> len(completion.token_ids)
        32
    """
    check_several(n, options)  # before a model is loaded for nothing
    kept = kept_model(find_model(model), precision, device, cache=cache, public_key=public_key)
    return kept.complete(prompt, batch_size=batch_size, n=n, **options)


def in_child() -> None:
    """Replace the lock: a thread that does not exist in the child may have held it. Models handle forks themselves."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=in_child)


def kept_model(
    path: Path,
    precision: str | None,
    device: str,
    gpu_mem_limit: int | None = None,
    *,
    cache: str | None = None,
    public_key: Folder = None,
) -> Model:
    folder = os.path.realpath(os.path.expanduser(path))  # noqa: PTH111  (pathlib's raises where there is no such user)
    precision = check_precision(precision)
    cache = check_cache(cache, precision or "fp32")
    public_key = find_public_key(public_key)
    key = folder, check_device(device), gpu_mem_limit, cache, public_key
    with _lock:
        kept = _loaded.setdefault(key, {})
        forget_replaced(kept)
        if precision is None and "fp32" in kept and kept["fp32"].device == "cpu":
            precision = "fp32"  # the default on the CPU
        if precision not in kept:
            model = load(
                path,
                precision=precision,
                device=device,
                gpu_mem_limit=gpu_mem_limit,
                cache=cache,
                public_key=public_key,
            )
            kept[precision] = kept[model.precision] = model
        return kept[precision]


def forget_replaced(kept: dict[str | None, Model]) -> None:
    """Drop models whose folder now holds another bundle, so that the next call loads the new one."""
    for precision, model in list(kept.items()):
        if model.bundle.has_successor():
            logger.info("%s was replaced; it is loaded again", model.bundle.folder)
            del kept[precision]

"""A loaded bundle, completing text."""

import logging
import os
from pathlib import Path

from runtime.bundle import Bundle, open_bundle, weights_verified
from runtime.completion import Completion, FinishReason
from runtime.decode_session import DecodeSession
from runtime.generation import generate
from runtime.options import check_device, check_max_new_tokens, check_prompt, check_threads
from runtime.tokenizer import Tokenizer

MODEL_VARIABLE = "GPT2_ONNX_MODEL"
DEFAULT_MODEL = "models/gpt2"
MAX_NEW_TOKENS = 64
logger = logging.getLogger("runtime")


class Model:
    """GPT-2, ready to complete text. Made by `load`; may be called from several threads at once."""

    def __init__(self, bundle: Bundle, *, device: str, threads: int | None) -> None:
        self.bundle = bundle
        self.device = device
        self._bos_token_id = bundle.bos_token_id()
        self._eos_token_ids = bundle.eos_token_ids()
        self._tokenizer = Tokenizer(bundle.folder / "tokenizer.json")
        path, architecture = bundle.graph_path("decode"), bundle.manifest.architecture
        self._decode = DecodeSession(path, architecture, device=device, threads=threads)

    def __repr__(self) -> str:
        return f"<Model {self.bundle.folder} on {self.device}>"

    def complete(self, prompt: str, *, max_new_tokens: int = MAX_NEW_TOKENS) -> Completion:
        """Continue `prompt` with the most likely tokens.

        Args:
            prompt: Text; an empty one starts from `<|endoftext|>`.
            max_new_tokens: Tokens to generate at most, 1 or more; the end of the context ends a text too.

        Raises:
            ValueError: An option out of its range, or a prompt that leaves no room in the context.

        Example:
            >>> model.complete("It was a bright cold day", max_new_tokens=8).token_ids  # doctest: +SKIP
        """
        max_new_tokens = check_max_new_tokens(max_new_tokens)
        prompt_ids = self._encode(check_prompt(prompt))
        room = self.bundle.manifest.architecture.n_positions - len(prompt_ids)
        with self._decode.sequence() as sequence:
            tokens = generate(
                sequence.advance, prompt_ids, max_new_tokens=min(max_new_tokens, room), stop_ids=self._eos_token_ids
            )
            return self._completion(tuple(tokens), len(prompt_ids))

    def _encode(self, prompt: str) -> list[int]:
        """Ids of `prompt`, at least one, with room for another in the context."""
        prompt_ids = self._tokenizer.encode(prompt)
        if not prompt_ids:
            prompt_ids = self._start()
        context = self.bundle.manifest.architecture.n_positions
        if len(prompt_ids) >= context:
            raise ValueError(
                f"prompt must be at most {context - 1:,} tokens, to leave room in the context of {context:,}, "
                f"got {len(prompt_ids):,}"
            )
        return prompt_ids

    def _start(self) -> list[int]:
        if self._bos_token_id is None:
            raise ValueError("prompt must not be empty: this checkpoint names no bos_token_id to start from")
        return [self._bos_token_id]

    def _completion(self, token_ids: tuple[int, ...], prompt_tokens: int) -> Completion:
        stopped = token_ids[-1] in self._eos_token_ids
        reason: FinishReason = "stop" if stopped else "length"
        text = self._tokenizer.decode(token_ids[:-1] if stopped else token_ids)
        return Completion(text, token_ids, reason, prompt_tokens)


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    threads: int | None = None,
    verify: bool = True,
) -> Model:
    """Load a bundle.

    Args:
        path: The bundle's folder; else `GPT2_ONNX_MODEL`, else `models/gpt2` under the current folder.
        device: `"auto"` or `"cpu"`.
        threads: Threads of one call, 1 or more; by default the CPUs that this process may use.
        verify: Check every file's SHA-256 first; sizes and presence are checked in any case.

    Raises:
        BundleError: The bundle is missing, damaged, newer than this release, or not a bundle.
        ValueError: An option out of its range.

    Example:
        >>> model = runtime.load("models/gpt2", device="cpu")  # doctest: +SKIP
    """
    device, threads = check_device(device), check_threads(threads)
    bundle = open_bundle(find_model(path), verify=verify)
    with weights_verified(bundle, verify=verify):
        model = Model(bundle, device=device, threads=threads)
    logger.info("%s runs on %s", bundle.folder, device)
    return model


def find_model(path: str | os.PathLike[str] | None) -> Path:
    """The folder a caller means, whether or not anything is there."""
    return Path(path or os.environ.get(MODEL_VARIABLE) or DEFAULT_MODEL)

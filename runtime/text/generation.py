"""One text being generated: takes logits, chooses the next id, collects text, and decides when to finish; no ONNX."""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.text.completion import Completion, FinishReason
from runtime.text.logprobs import TokenLogprob, token_logprob
from runtime.text.options import Settings
from runtime.text.sampling import Sampler
from runtime.text.stops import StopFilter
from runtime.text.tokenizer import IncrementalDecoder, Tokenizer


class Generation:
    """The continuation of one prompt, token by token, until `finish_reason` is set.

    Args:
        prompt_ids: At least one.
        settings: The caller's options, checked.
        tokenizer: Decodes the ids.
        eos_ids: Ids that end a text, unless the settings ignore them.
        room: Tokens that the context has left, 1 or more.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        settings: Settings,
        *,
        tokenizer: Tokenizer,
        eos_ids: Collection[int],
        room: int,
    ) -> None:
        self.prompt_ids = prompt_ids
        self.token_ids: list[int] = []
        self.text = ""  # final so far
        self.finish_reason: FinishReason | None = None
        self.draft = settings.draft
        self._eos_ids = () if settings.ignore_eos else eos_ids
        self._limit = min(settings.max_new_tokens, room)
        greedy = not settings.samples and settings.repetition_penalty is None
        self._sampler = None if greedy else Sampler(settings, prompt_ids)
        self._logprobs: list[TokenLogprob] | None = None if settings.logprobs is None else []
        self._top = settings.logprobs or 0
        self._decoder = IncrementalDecoder(tokenizer)
        self._stops = StopFilter(settings.stop)

    @property
    def plain(self) -> bool:
        """Whether only the most likely ids are needed, and no logits."""
        return self._sampler is None and self._logprobs is None

    @property
    def most_ids(self) -> int:
        """The most ids that prompt and continuation can have together."""
        return len(self.prompt_ids) + self._limit

    def take(self, most_likely: int, logits: NDArray[np.float32]) -> int:
        """Choose the next id, given the most likely one and logits [V], which are not read if this is `plain`."""
        token = self._sampler.choose(logits) if self._sampler else most_likely
        self.token_ids.append(token)
        if self._logprobs is not None:
            self._logprobs.append(token_logprob(logits, token, self._top))
        if token in self._eos_ids:
            self._finish("stop")
        else:
            self._show(token)
        return token

    def completion(self) -> Completion:
        """The result, once `finish_reason` is set."""
        assert self.finish_reason is not None
        logprobs = None if self._logprobs is None else tuple(self._logprobs)
        return Completion(self.text, tuple(self.token_ids), self.finish_reason, len(self.prompt_ids), logprobs)

    def _show(self, token: int) -> None:
        self.text += self._stops.push(self._decoder.push(token))
        if self._stops.found:
            self.finish_reason = "stop"
        elif len(self.token_ids) == self._limit:
            self._finish("length")

    def _finish(self, reason: FinishReason) -> None:
        """Release the text that was held back, as nothing follows it."""
        self.text += self._stops.push(self._decoder.flush())
        self.text += self._stops.flush()
        self.finish_reason = "stop" if self._stops.found else reason

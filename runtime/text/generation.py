"""One text being generated: takes logits, chooses the next id, collects text, and decides when to finish; no ONNX."""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.text.completion import Completion, FinishReason
from runtime.text.guide import Guide
from runtime.text.logprobs import TokenLogprob, token_logprob
from runtime.text.options import Settings
from runtime.text.processors import bad_word_ids
from runtime.text.sampling import Sampler
from runtime.text.stops import StopFilter
from runtime.text.tokenizer import IncrementalDecoder, Tokenizer

NO_LOGITS = np.empty(0, np.float32)


class Generation:
    """The continuation of one prompt, token by token, until `finish_reason` is set.

    Args:
        prompt_ids: At least one.
        settings: The caller's options, checked.
        tokenizer: Decodes the ids.
        eos_ids: Ids that end a text, unless the settings ignore them.
        room: Tokens that the context has left; 0 only if none are wanted.
        guide: Says which ids may come, if the text follows a grammar; it is this text's alone.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        settings: Settings,
        *,
        tokenizer: Tokenizer,
        eos_ids: Collection[int],
        room: int,
        guide: Guide | None = None,
    ) -> None:
        self.prompt_ids = prompt_ids
        self.token_ids: list[int] = []
        self.text = ""  # final so far
        self.finish_reason: FinishReason | None = None
        self.draft = settings.draft
        self._eos_ids = ends_of_text(settings, eos_ids)
        self._limit = min(settings.max_new_tokens, room)
        self._guide = guide
        greedy = not settings.samples and not settings.changes_logits and guide is None
        bad_words = bad_word_ids(settings.bad_words, tokenizer)
        self._sampler = None if greedy else Sampler(settings, prompt_ids, self._eos_ids, bad_words)
        self._logprobs: list[TokenLogprob] | None = None if settings.logprobs is None else []
        self._top = settings.logprobs or 0
        self._prompt_top = settings.prompt_logprobs
        self._prompt_logprobs: list[TokenLogprob | None] = [None]  # of the first token, which has nothing before it
        self._decoder = IncrementalDecoder(tokenizer)
        self._stops = StopFilter(settings.stop)
        self._end_with_prompt()

    @property
    def logprobs(self) -> Sequence[TokenLogprob] | None:
        """Those of `token_ids`, if asked for."""
        return self._logprobs

    @property
    def prompt_logprobs(self) -> tuple[TokenLogprob | None, ...] | None:
        """Those of the prompt's tokens once all are known, if asked for."""
        asked = self._prompt_top is not None and self.unscored == len(self.prompt_ids)
        return tuple(self._prompt_logprobs) if asked else None

    @property
    def unscored(self) -> int:
        """The index of the prompt's first token that still wants a log-probability; if none does, their count."""
        return len(self.prompt_ids) if self._prompt_top is None else len(self._prompt_logprobs)

    def score_prompt(self, logits: NDArray[np.float32]) -> None:
        """Take the logits [V] from which the token at `unscored` follows."""
        token = self.prompt_ids[self.unscored]
        self._prompt_logprobs.append(token_logprob(logits, token, self._prompt_top or 0))
        self._end_with_prompt()

    def _end_with_prompt(self) -> None:
        """End a text of no tokens once all is known of its prompt."""
        if not self._limit and self.unscored == len(self.prompt_ids):
            self._settle("length")

    @property
    def plain(self) -> bool:
        """Whether only the most likely ids are needed, and no logits."""
        return self._sampler is None and self._logprobs is None

    @property
    def most_ids(self) -> int:
        """The most ids that prompt and continuation can have together."""
        return len(self.prompt_ids) + self._limit

    def forced(self, most: int) -> list[int]:
        """At most `most` ids that come next whatever the logits are; none if drafts are switched off."""
        return self._guide.forced(most) if self._guide and self.draft is not False else []

    def take(self, most_likely: int, logits: NDArray[np.float32]) -> int:
        """Choose the next id, given the most likely one and logits [V], which are not read if this is `plain`."""
        allowed = self._guide.allowed if self._guide else None
        token = self._sampler.choose(logits, allowed) if self._sampler else most_likely
        self.token_ids.append(token)
        if self._logprobs is not None:
            self._logprobs.append(token_logprob(logits, token, self._top))
        if self._guide:
            self._guide.take(token)
        if token in self._eos_ids:
            self._finish("stop")
        else:
            self._show(token)
        return token

    def completion(self) -> Completion:
        """The result, once `finish_reason` is set."""
        assert self.finish_reason is not None
        logprobs = None if self._logprobs is None else tuple(self._logprobs)
        return Completion(
            self.text,
            tuple(self.token_ids),
            self.finish_reason,
            len(self.prompt_ids),
            logprobs,
            self.prompt_logprobs,
        )

    def _show(self, token: int) -> None:
        self.text += self._stops.push(self._decoder.push(token))
        if self._stops.found:
            self._settle("stop")
        elif self._guide and self._guide.over:
            self._finish("stop")
        elif len(self.token_ids) == self._limit:
            self._finish("length")

    def _finish(self, reason: FinishReason) -> None:
        """Release the text that was held back, as nothing follows it."""
        if self._guide is None or self._guide.whole:  # else a character whose bytes are not all there fits no grammar
            self.text += self._stops.push(self._decoder.flush())
        self.text += self._stops.flush()
        self._settle("stop" if self._stops.found else reason)

    def _settle(self, reason: FinishReason) -> None:
        """End for a reason, unless what a grammar asks for is not all there; what is cut before a stop may be whole."""
        guide = self._guide
        whole = guide is None or (guide.accepts(self.text) if self._stops.found else guide.whole)
        self.finish_reason = reason if whole else "incomplete"


def ends_of_text(settings: Settings, eos_ids: Collection[int]) -> set[int]:
    """The ids that end a text: those asked for, and the model's own unless they are ignored."""
    return {*settings.eos_token_id, *(() if settings.ignore_eos else eos_ids)}

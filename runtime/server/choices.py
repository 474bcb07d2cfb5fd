"""Choices: completions, or what a stream tells next of them, in OpenAI's form."""

from collections.abc import Sequence

from runtime.engine.texts import GeneratedText
from runtime.server.answers import Choice, Logprobs, PromptTokensDetails, Usage
from runtime.server.asked import Asked
from runtime.server.errors import invalid
from runtime.text.completion import Completion
from runtime.text.logprobs import TokenLogprob
from runtime.text.tokenizer import IncrementalDecoder, Tokenizer


class Speaker:
    """Tells one completion, whole or piece by piece: its text, and its tokens' log-probabilities if asked for.

    Args:
        echoed: The ids of the prompt, if they are to be told first.
    """

    def __init__(self, index: int, tokenizer: Tokenizer, echoed: Sequence[int] | None, *, logprobs: bool) -> None:
        self._index = index
        self._tokenizer = tokenizer
        self._decoder = IncrementalDecoder(tokenizer)
        self._echoed = echoed
        self._wants = logprobs
        self._offset = self._told = 0  # characters, and generated tokens, told so far

    def whole(self, completion: Completion) -> Choice:
        """All of a completion at once."""
        return self._choice(completion.text, completion.logprobs, completion.prompt_logprobs, completion.finish_reason)

    def news(self, text: GeneratedText) -> Choice | None:
        """What is new of a streamed text; None if nothing is. Raises what ended it too early."""
        said = "".join(iter(text.piece, ""))
        ended = text.seen
        reason = completion_of(text).finish_reason if ended else None
        if not (said or ended):
            return None
        generation = text.generation
        told, self._told = self._told, len(text.told[0])
        logprobs = None if generation.logprobs is None else generation.logprobs[told : self._told]
        return self._choice(said, logprobs, generation.prompt_logprobs, reason)

    def _choice(
        self,
        said: str,
        logprobs: Sequence[TokenLogprob] | None,
        prompt_logprobs: Sequence[TokenLogprob | None] | None,
        reason: str | None,
    ) -> Choice:
        told = list[TokenLogprob | None](logprobs or ()), [token.token_id for token in logprobs or ()]
        if self._echoed is not None:
            said = self._tokenizer.decode(self._echoed) + said
            told = [*(prompt_logprobs or ()), *told[0]], [*(self._echoed if prompt_logprobs else ()), *told[1]]
            self._echoed = None
        return Choice(self._index, said, self._logprobs(*told) if self._wants else None, reason)  # type: ignore[arg-type]

    def _logprobs(self, logprobs: Sequence[TokenLogprob | None], ids: Sequence[int]) -> Logprobs:
        piece = self._tokenizer.piece
        return Logprobs(
            tokens=[piece(token) for token in ids],
            token_logprobs=[None if token is None else token.logprob for token in logprobs],
            top_logprobs=[None if token is None else self._top(token) for token in logprobs],
            text_offset=[self._next_offset(token) for token in ids],
        )

    def _top(self, token: TokenLogprob) -> dict[str, float]:
        """The likeliest tokens and this one. Of two ids that are spelled alike, the likelier is told."""
        found: dict[str, float] = {}
        for other, logprob in (*token.top, (token.token_id, token.logprob)):
            found.setdefault(self._tokenizer.piece(other), logprob)
        return found

    def _next_offset(self, token: int) -> int:
        """Where a token begins in the text, in characters; one that only completes a character begins with it."""
        offset = self._offset
        self._offset += len(self._decoder.push(token))
        return offset


def completion_of(text: GeneratedText) -> Completion:
    """The result of a text; ApiError if what was asked for leaves no token to choose."""
    try:
        return text.completion()
    except ValueError as error:
        raise invalid(None, str(error)) from None


def chosen(asked: Asked, completions: Sequence[Completion], number: int) -> list[Completion]:
    """The `n` completions that are given of a prompt, of those made for all."""
    made = completions[number * len(asked.settings) : (number + 1) * len(asked.settings)]
    return asked.several.given(made) if len(made) > asked.n else list(made)


def usage(asked: Asked, texts: Sequence[GeneratedText]) -> Usage:
    """Tokens of the prompts, and of all texts made; those of the first text of a prompt say what was cached."""
    prompt_tokens = sum(map(len, asked.prompts))
    completion_tokens = sum(len(text.generation.token_ids) for text in texts)
    cached = sum(text.reused or 0 for text in texts[:: len(asked.settings)])
    return Usage(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens, PromptTokensDetails(cached))

"""Completion: the text, ids, finish reason and log-probabilities that one prompt gave."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from runtime.text.logprobs import TokenLogprob

FinishReason = Literal["stop", "length", "incomplete"]


@dataclass(frozen=True, slots=True)
class Completion:
    """The continuation of one prompt; `str()` gives its text.

    Attributes:
        text: The continuation alone, without the prompt, and without the `<|endoftext|>` or the stop that ended it.
        token_ids: Every generated id, those of an ending `<|endoftext|>` or stop included.
        finish_reason: `"stop"` if the model or a stop ended it, `"length"` if `max_new_tokens` or the context did;
            `"incomplete"` if it ended, for whichever reason, before what its regex, schema or grammar asks for.
        prompt_tokens: Tokens in the prompt.
        logprobs: One for each of `token_ids`, if asked for.
        prompt_logprobs: One for each of the prompt's tokens, if asked for; None for the first, which follows nothing.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None

    def __str__(self) -> str:
        return self.text

    def as_dict(self) -> dict[str, Any]:
        """A dictionary for JSON, without what was not asked for.

        Example:
            >>> sorted(model.complete("It was", max_new_tokens=2).as_dict())
            ['finish_reason', 'prompt_tokens', 'text', 'token_ids']
        """
        return {name: value for name, value in asdict(self).items() if value is not None}

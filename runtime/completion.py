"""What a completion is."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Completion:
    """The continuation of one prompt; `str()` gives its text.

    Attributes:
        text: The continuation alone, without the prompt and without `<|endoftext|>`.
        token_ids: Every generated id, an ending `<|endoftext|>` included.
        finish_reason: `"stop"` if the model ended the text, `"length"` if `max_new_tokens` or the context did.
        prompt_tokens: Tokens in the prompt.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int

    def __str__(self) -> str:
        return self.text

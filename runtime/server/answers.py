"""The bodies of answers, under OpenAI's names."""

from typing import Literal

from msgspec import Struct

Logprob = float | None


class Logprobs(Struct):
    """Of each token of `text`: its characters, its log-probability, the likeliest tokens instead, and where it begins.

    A prompt's first token follows nothing, and has None. An id that ends the text is among the tokens, with no
    characters of `text`.
    """

    tokens: list[str]
    token_logprobs: list[Logprob]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Choice(Struct):
    """One completion, or a piece of it in a stream; `finish_reason` is None before the last."""

    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length", "incomplete"] | None


class PromptTokensDetails(Struct):
    """`cached_tokens` were not read again, as another text had begun with them."""

    cached_tokens: int


class Usage(Struct):
    """Tokens: of each prompt once, and of all completions."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CompletionAnswer(Struct, omit_defaults=True):
    """Completions, or a part of them in a stream."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage | None = None


class Embedding(Struct):
    """A vector [C] of float32, as numbers or as its bytes (little-endian) in base64."""

    object: str
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(Struct):
    object: str
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class ModelCard(Struct):
    """The model that is served."""

    id: str
    object: str
    created: int
    owned_by: str
    max_model_len: int


class ModelList(Struct):
    object: str
    data: list[ModelCard]


class Tokens(Struct):
    """Ids of a text, how many may be in the context, and each one's text if asked for."""

    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None


class Detokenized(Struct):
    prompt: str


class TokenizerInfo(Struct):
    """What clients need to know of the tokenizer, as vLLM tells it."""

    tokenizer_class: str
    vocab_size: int
    model_max_length: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    add_bos_token: bool
    chat_template: str | None


class Status(Struct):
    status: str

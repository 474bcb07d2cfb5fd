"""The tokenizer's endpoints, under vLLM's names: `/tokenize`, `/detokenize`, `/tokenizer_info`."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from runtime.checks import check_ids, check_text
from runtime.model import Model
from runtime.server.answers import Detokenized, TokenizerInfo, Tokens
from runtime.server.asked import refusals
from runtime.server.bodies import DetokenizeBody, TokenizeBody
from runtime.server.requests import JSONAnswer, body_of
from runtime.server.service import service_of
from runtime.text.prompts import Prompting


async def tokenize(request: Request) -> Response:
    """Turn a text into ids."""
    service = service_of(request)
    body = await body_of(request, TokenizeBody)
    return JSONAnswer(await asyncio.to_thread(encoded, service.model.prompting, body))


def encoded(prompting: Prompting, body: TokenizeBody) -> Tokens:
    tokenizer = prompting.tokenizer
    with refusals("prompt"):
        ids = tokenizer.encode(check_text("prompt", body.prompt))
    pieces = [tokenizer.piece(token) for token in ids] if body.return_token_strs else None
    return Tokens(ids, len(ids), prompting.context, pieces)


async def detokenize(request: Request) -> Response:
    """Turn ids into a text."""
    service = service_of(request)
    body = await body_of(request, DetokenizeBody)
    return JSONAnswer(await asyncio.to_thread(decoded, service.model, body))


def decoded(model: Model, body: DetokenizeBody) -> Detokenized:
    with refusals("tokens"):
        ids = check_ids(body.tokens, model.bundle.manifest.architecture.vocab_size, "tokens")
    return Detokenized(model.prompting.tokenizer.decode(ids))


async def tokenizer_info(request: Request) -> Response:
    """Tell which tokens begin and end texts."""
    bundle, prompting = service_of(request).model.bundle, service_of(request).model.prompting
    bos, eos = bundle.bos_token_id(), min(bundle.eos_token_ids(), default=None)
    begins, ends = (None if token is None else prompting.tokenizer.piece(token) for token in (bos, eos))
    return JSONAnswer(
        TokenizerInfo(
            tokenizer_class="GPT2TokenizerFast",
            vocab_size=bundle.manifest.architecture.vocab_size,
            model_max_length=prompting.context,
            bos_token=begins,
            eos_token=ends,
            pad_token=None,
            add_bos_token=False,
            chat_template=None,
        )
    )

"""`POST /v1/completions`: a request becomes texts of the engine, and what they say becomes choices."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from itertools import chain
from time import time
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from runtime.engine.pieces import async_arrivals
from runtime.engine.texts import GeneratedText
from runtime.model.model import text_of
from runtime.server.answers import Choice, CompletionAnswer, Usage
from runtime.server.asked import Asked, refusals, understand
from runtime.server.bodies import CompletionBody
from runtime.server.choices import Speaker, chosen, completion_of, usage
from runtime.server.errors import ApiError, out_of_memory, timed_out
from runtime.server.events import DONE, EventStream, event
from runtime.server.requests import JSONAnswer, body_of, while_there
from runtime.server.service import Service, service_of

GRACE = 10.0  # seconds that a client has to read the end of a stream
T = TypeVar("T")
LONG = 4096  # characters and ids from which a body is understood in a thread, so that streams go on meanwhile


async def completions(request: Request) -> Response:
    """Complete prompts: the whole answer at once, or a stream of events."""
    service = service_of(request)
    body = await body_of(request, CompletionBody)
    asked = await prepared(lambda: understand(body, service.model, service.settings), body)
    job = Job(request.state.record.name, service, asked)
    request.state.record.asks(job.texts, body)
    job.texts += await prepared(job.begin, body)
    if not asked.streams:
        return JSONAnswer(await while_there(request, job.whole()))
    events = job.events()
    first = await while_there(request, anext(events))  # what fails until then has a status
    return EventStream(first, events, service.settings.timeout + GRACE)


async def prepared(work: Callable[[], T], body: CompletionBody) -> T:
    """Run work that takes long for long bodies or grammars; then in a thread."""
    guided = body.regex or body.json_schema or body.grammar
    return await asyncio.to_thread(work) if guided or size_of(body) > LONG else work()


def size_of(body: CompletionBody) -> int:
    """Characters and ids of what grows with a body."""
    prompts = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    parts = (*prompts, *(body.bad_words or ()))
    return len(body.logit_bias or ()) + sum(len(each) if isinstance(each, str | list) else 1 for each in parts)


class Job:
    """The texts of one request, and how they are told.

    Attributes:
        texts: Those of the first prompt, then those of the second, and so on.
    """

    def __init__(self, name: str, service: Service, asked: Asked) -> None:
        self._name, self._service, self._asked = name, service, asked
        self._created = int(time())
        self.texts: list[GeneratedText] = []

    def begin(self) -> list[GeneratedText]:
        """Make the texts; nothing runs yet."""
        asked, model = self._asked, self._service.model
        with refusals():
            generations = [model.prompting.begin(ids, each) for ids in asked.prompts for each in asked.settings]
        return [text_of(model, generation, streamed=asked.streams) for generation in generations]

    async def whole(self) -> CompletionAnswer:
        """Run all texts, and answer once."""
        with self._admitted():
            async for text in self._service.model.loop.run_all_async(self.texts, len(self.texts)):
                completion_of(text)  # raises what kept it from one
            completions = [text.completion() for text in self.texts]
            given = [chosen(self._asked, completions, number) for number in range(len(self._asked.prompts))]
            told = enumerate(chain.from_iterable(given))
            choices = [self._speaker(index).whole(completion) for index, completion in told]
            return self._answer(choices, usage(self._asked, self.texts))

    async def events(self) -> AsyncGenerator[bytes]:
        """Run all texts, and tell what each gains; an error after the first event is the last one."""
        speakers = {id(text): self._speaker(index) for index, text in enumerate(self.texts)}
        begun = False
        try:
            with self._admitted():
                async with aclosing(async_arrivals(self._service.model.loop, self.texts)) as arrivals:
                    async for text in arrivals:
                        if choice := speakers[id(text)].news(text):
                            yield event(self._answer([choice]))
                            begun = True
                    if self._asked.tells_usage:
                        yield event(self._answer([], usage(self._asked, self.texts)))
        except Exception as error:
            if not begun:
                raise
            yield event(self._service.told(error, self._name).body)
            return
        yield DONE

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        """Let the texts run, if there is room for them, for so long as they may."""
        seconds, endings = self._service.settings.timeout, self._service.endings
        expiry = asyncio.get_running_loop().call_later(seconds, self._end, timed_out(seconds))
        endings.add(self._end)
        try:
            with self._service.admission.admit(len(self.texts)):
                yield
        except MemoryError:
            raise out_of_memory() from None
        finally:
            expiry.cancel()
            endings.discard(self._end)
            self._service.metrics.finished(self.texts)

    def _end(self, error: ApiError) -> None:
        """End texts that may not go on; the engine's next step frees their slots."""
        for text in self.texts:
            if not text.finished:
                text.error = error

    def _speaker(self, index: int) -> Speaker:
        asked = self._asked
        echoed = asked.prompts[index // asked.n] if asked.echo else None
        wants = asked.several.asked.logprobs is not None
        return Speaker(index, self._service.model.prompting.tokenizer, echoed, logprobs=wants)

    def _answer(self, choices: list[Choice], tokens: Usage | None = None) -> CompletionAnswer:
        return CompletionAnswer(
            id=f"cmpl-{self._name}",
            object="text_completion",
            created=self._created,
            model=self._service.name,
            system_fingerprint=self._service.fingerprint,
            choices=choices,
            usage=tokens,
        )

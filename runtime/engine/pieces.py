"""Streams a text through the loop: pieces of it once they are final."""

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import ExitStack

from runtime.engine.loop import Loop
from runtime.engine.texts import GeneratedText


def pieces(loop: Loop, text: GeneratedText) -> Generator[str]:
    """Run a streamed text while its reader waits for it."""
    with loop.running(text):
        while not text.seen:
            loop.wait(text.is_ready)
            if piece := text.piece():
                yield piece
    text.completion()  # raises what kept it from one


async def async_pieces(loop: Loop, text: GeneratedText) -> AsyncGenerator[str]:
    """The same for asyncio."""
    with loop.running(text):
        while not text.seen:
            await loop.wait_async(text.is_ready)
            if piece := text.piece():
                yield piece
    text.completion()


async def async_arrivals(loop: Loop, texts: Sequence[GeneratedText]) -> AsyncGenerator[GeneratedText]:
    """Run streamed texts, and yield each whenever its reader has something to take, until all of it is taken."""
    with ExitStack() as running:
        for text in texts:
            running.enter_context(loop.running(text))
        left = list(texts)
        while left:
            await loop.wait_async(lambda: any(text.is_ready() for text in left))
            for text in [text for text in left if text.is_ready()]:
                yield text
                if text.seen:
                    left.remove(text)

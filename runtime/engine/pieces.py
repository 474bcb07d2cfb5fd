"""Streams a text through the loop: pieces of it once they are final."""

from collections.abc import AsyncGenerator, Generator

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

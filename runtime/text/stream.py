"""Streams: iterate over a completion's text while it is generated, with `for` or `async for`."""

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import suppress
from typing import NoReturn

from runtime.forks import leave_alone, owner, tell_children
from runtime.text.completion import Completion
from runtime.text.generation import Generation
from runtime.text.logprobs import TokenLogprob


class Told:
    """What a stream tells of its completion beside the pieces."""

    _generation: Generation
    _given: int  # characters

    @property
    def prompt_logprobs(self) -> tuple[TokenLogprob | None, ...] | None:
        """Those of the prompt's tokens, if asked for, from the first piece on; None before it."""
        return self._generation.prompt_logprobs

    @property
    def completion(self) -> Completion | None:
        """The whole completion once the last piece is given; None before that and after an early end."""
        ended = self._generation.finish_reason and self._given == len(self._generation.text)
        return self._generation.completion() if ended else None


class Stream(Told, Iterator[str]):
    """Pieces of one completion's text, given once they are final; joined, they are its text.

    Close it, or leave its `with` block, to stop early and free its slot. A stream that is no longer referenced closes
    by itself.
    """

    def __init__(self, pieces: Generator[str], generation: Generation) -> None:
        self._pieces = pieces
        self._generation = generation
        self._closed = False
        self._given = 0
        self._check_owner = owner("stream", "make one here: model.stream(…)")
        tell_children(self, Stream._forked)

    def __next__(self) -> str:
        self._check_owner()
        piece = "" if self._closed else next(self._pieces)
        self._given += len(piece)
        if self._closed or self.completion:  # end with the last piece, not after it
            self._pieces.close()
        if not piece:
            raise StopIteration
        return piece

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop generating; called from another thread, the piece being generated is the last."""
        self._closed = True
        with suppress(ValueError):  # the generator is running in another thread, which will see the flag
            self._pieces.close()

    def _forked(self) -> None:
        """In a forked child, leave the generator alone: closing it would touch what belongs to the parent."""
        leave_alone(self._pieces)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a stream cannot be pickled while it runs; pass its text, or its completion")


class AsyncStream(Told, AsyncIterator[str]):
    """Pieces of one completion's text, as those of `Stream`, for `async for`.

    Close it, or leave its `async with` block, to stop early and free its slot; so does cancelling the task that awaits.
    """

    def __init__(self, pieces: AsyncGenerator[str], generation: Generation) -> None:
        self._pieces = pieces
        self._generation = generation
        self._given = 0
        self._check_owner = owner("stream", "make one here: model.astream(…)")

    async def __anext__(self) -> str:
        self._check_owner()
        piece = await anext(self._pieces)
        self._given += len(piece)
        return piece

    async def __aenter__(self) -> "AsyncStream":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop generating."""
        await self._pieces.aclose()

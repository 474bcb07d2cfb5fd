"""Streams: iterate over a completion's text while it is generated."""

from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import NoReturn

from runtime.forks import leave_alone, owner, tell_children
from runtime.text.completion import Completion
from runtime.text.generation import Generation


class Stream(Iterator[str]):
    """Pieces of one completion's text, given once they are final; joined, they are its text.

    Close it, or leave its `with` block, to stop early and free its cache. A stream that is no longer referenced closes
    by itself.
    """

    def __init__(self, pieces: Generator[str], generation: Generation) -> None:
        self._pieces = pieces
        self._generation = generation
        self._closed = False
        self._check_owner = owner("stream", "make one here: model.stream(…)")
        tell_children(self, Stream._forked)

    def __next__(self) -> str:
        self._check_owner()
        piece = "" if self._closed else next(self._pieces)
        if self._closed or self._generation.finish_reason:  # free the cache with the last piece, not after it
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

    @property
    def completion(self) -> Completion | None:
        """The whole completion once the last piece is given; None before that and after an early `close`."""
        return self._generation.completion() if self._generation.finish_reason else None

"""Text while it is generated."""

from collections.abc import Generator, Iterator
from contextlib import suppress

from runtime.completion import Completion
from runtime.generation import Generation


class Stream(Iterator[str]):
    """Pieces of one completion's text, as soon as they are certain; joined, they are its text.

    Close it, or leave its `with` block, to stop early: its cache is free again then. An iterator that nobody holds
    closes by itself.
    """

    def __init__(self, pieces: Generator[str], generation: Generation) -> None:
        self._pieces = pieces
        self._generation = generation
        self._closed = False

    def __next__(self) -> str:
        piece = "" if self._closed else next(self._pieces)
        if self._closed or self._generation.finish_reason:  # the cache is free with the last piece, not behind it
            self._pieces.close()
        if not piece:
            raise StopIteration
        return piece

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Generate no more; from another thread, no more than the piece that is under way."""
        self._closed = True
        with suppress(ValueError):  # the generator is running, in the thread that will see the flag
            self._pieces.close()

    @property
    def completion(self) -> Completion | None:
        """The whole completion, once the last piece was given; None before, and after an early `close`."""
        return self._generation.completion() if self._generation.finish_reason else None

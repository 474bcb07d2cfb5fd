"""Text while it is generated."""

from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import NoReturn

from runtime.forks import leave_alone, owner, tell_children
from runtime.text.completion import Completion
from runtime.text.generation import Generation


class Stream(Iterator[str]):
    """Pieces of one completion's text, as soon as they are certain; joined, they are its text.

    Close it, or leave its `with` block, to stop early: its cache is free again then. An iterator that nobody holds
    closes by itself.
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
        if self._closed or self._generation.finish_reason:  # the cache is free with the last piece, not after it
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

    def _forked(self) -> None:
        """In a child: nobody will ask for more, and to end it would be to touch what belongs to the parent."""
        leave_alone(self._pieces)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a stream cannot be pickled, as it is under way; give its text, or its completion")

    @property
    def completion(self) -> Completion | None:
        """The whole completion, once the last piece was given; None before, and after an early `close`."""
        return self._generation.completion() if self._generation.finish_reason else None

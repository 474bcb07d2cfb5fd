"""Text while it is generated."""

from collections.abc import Generator, Iterator
from types import TracebackType

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

    def __next__(self) -> str:
        return next(self._pieces)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Generate no more."""
        self._pieces.close()

    @property
    def completion(self) -> Completion | None:
        """The whole completion, once the last piece was given; None before, and after an early `close`."""
        return self._generation.completion() if self._generation.finish_reason else None

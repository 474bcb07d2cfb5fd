"""Admission: how many texts may be under way, and when a refused request may come again."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from runtime.server.errors import ApiError, invalid, overloaded, shutting_down

WEIGHT = 0.1  # of the newest text in the mean
MOST_WAIT = 60  # seconds that a client is asked to wait


class Admission:
    """Counts texts that run or wait; refuses those for which there is no place.

    Args:
        slots: Texts that run at once.
        max_queue: Texts that may wait.
    """

    def __init__(self, slots: int, max_queue: int) -> None:
        self.slots = slots
        self.most = slots + max_queue
        self.under_way = 0
        self.draining = False
        self._seconds = 1.0  # that a text takes, on average

    @property
    def waiting(self) -> int:
        return max(0, self.under_way - self.slots)

    @contextmanager
    def admit(self, texts: int) -> Iterator[None]:
        """Count a request's texts while the block runs; ApiError if there are too many."""
        if texts > self.most:
            raise invalid(
                "prompt",
                f"prompts times completions must be at most {self.most:,} texts on this server, got {texts:,}",
            )
        if self.draining:
            raise shutting_down()
        if self.under_way + texts > self.most:
            raise self._refusal()
        self.under_way += texts
        began = monotonic()
        try:
            yield
            self._seconds += WEIGHT * (monotonic() - began - self._seconds)
        finally:
            self.under_way -= texts

    def _refusal(self) -> ApiError:
        """A slot is free after a text's time, and the queue moves up by all slots in that time."""
        seconds = math.ceil(self._seconds * max(1.0, self.waiting / self.slots))
        return overloaded(
            429,
            f"the server is busy: {self.under_way:,} texts run or wait, at most {self.most:,} may; send it again",
            min(max(1, seconds), MOST_WAIT),
            kind="rate_limit_error",
            code="rate_limit_exceeded",
        )

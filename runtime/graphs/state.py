"""DecodeState: one text in one slot, driven by hand."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from runtime.arrays import Floats
from runtime.graphs.work import Answer, Slots, Work


class DecodeState:
    """The tokens that a slot has read so far."""

    def __init__(self, slots: Slots, slot: int = 0) -> None:
        self.slots = slots
        self.slot = slot
        self.length = 0

    def advance(self, token_ids: Sequence[int]) -> int:
        """Run `token_ids` (at least one) after those already read; give the most likely next id."""
        return self.step(token_ids, logits=False)[0]

    def step(self, token_ids: Sequence[int], *, logits: bool = True) -> tuple[int, Floats]:
        """Like `advance`, with the logits after the last id: [V], or [0] if not wanted. The next run overwrites it."""
        answer = self.read(token_ids, last=1, logits=logits)
        return int(answer.next_ids[0]), answer.logits[0]

    def read(self, token_ids: Sequence[int], *, last: int, logits: bool = True) -> Answer:
        """Run `token_ids`; give the answer after each of the `last` ones."""
        total = self.length + len(token_ids)
        self.slots.reserve(self.slot, total)
        (answer,) = self.slots.run([Work(self.slot, token_ids, self.length, last, logits)])
        self.length = total
        return answer

    def launch(self, token_id: int, steps: int) -> None:
        """Launch greedy steps on the device: the first runs `token_id`, each later one the id of the step before."""
        self.slots.launch([Work(self.slot, [token_id], self.length)], steps)
        self.length += steps

    def collect(self) -> list[int]:
        """Wait for the launched steps; return their ids."""
        (said,) = self.slots.collect()
        return said

    def rewind(self, length: int) -> None:
        """Forget everything after the first `length` tokens."""
        self.length = min(self.length, length)

    def cache(self) -> dict[str, NDArray[Any]]:
        """Keys and values [1, n_head, length, head_size], or their codes, by their names as outputs."""
        return self.slots.cache(self.slot, self.length)

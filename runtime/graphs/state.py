"""DecodeState: one sequence, its length, and its row of a cache."""

from collections.abc import Sequence

from runtime.arrays import Floats
from runtime.graphs.forward import Answer, Forward


class DecodeState:
    """The tokens read so far, with their keys and values in one row of a cache."""

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
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
        indices = range(len(token_ids) - last, len(token_ids))
        graph = self.forward.over(len(token_ids))
        answer = graph.run(0, [token_ids], [self.length], [total], indices, logits=logits)
        self.length = total
        return answer

    @property
    def launches(self) -> bool:
        """Whether greedy steps can be launched on a device: `launch` and `collect`."""
        return self.forward.launcher is not None

    def launch(self, token_id: int, steps: int) -> None:
        """Launch greedy steps on the device: the first runs `token_id`, each later one the id of the step before."""
        assert self.forward.launcher
        self.forward.launcher.launch([token_id], [self.length], steps)
        self.length += steps

    def collect(self) -> list[int]:
        """Wait for the launched steps; return their ids."""
        assert self.forward.launcher
        said: list[int] = self.forward.launcher.collect()[0].tolist()
        return said

    def rewind(self, length: int) -> None:
        """Forget everything after the first `length` tokens."""
        self.length = min(self.length, length)

    def cache(self) -> dict[str, Floats]:
        """Keys and values [1, n_head, length, head_size] by their names as outputs; views, not copies."""
        return self.forward.cache.row(0, self.length)

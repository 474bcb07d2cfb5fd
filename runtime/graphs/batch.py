"""DecodeBatch: the rows of a batch, each with its own length, in one cache."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Floats
from runtime.graphs.forward import Forward


class DecodeBatch:
    """Rows of a cache. Taken rows come first, without gaps, and a step runs only those."""

    def __init__(self, forward: Forward, rows: int) -> None:
        self._forward = forward
        self.rows = rows
        self._lengths = np.zeros(rows, np.int64)
        self._taken = 0

    def admit(self, prompts: Sequence[Sequence[int]], *, logits: bool = True) -> tuple[NDArray[np.int64], Floats]:
        """Prefill prompts into the rows after those taken; give their most likely next ids [B] and their logits.

        Logits are [B, V], or [B, 0] if not wanted.
        """
        lengths = np.array([len(prompt) for prompt in prompts])
        width = lengths.max()
        ids = np.zeros((len(prompts), width), np.int64)  # [B, S], padded on the right
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        ends = np.arange(len(prompts)) * width + lengths - 1
        graph = self._forward.over(ids.shape[1])
        answer = graph.run(self._taken, ids, np.zeros_like(lengths), lengths, ends, logits=logits)
        self._lengths[self._taken : self._taken + len(prompts)] = lengths
        self._taken += len(prompts)
        return answer.next_ids, answer.logits

    def step(self, token_ids: Sequence[int], *, logits: bool = True) -> tuple[NDArray[np.int64], Floats]:
        """Append an id to each row; give ids and logits as `admit` does. The next run overwrites them."""
        lengths = self._lengths[: self._taken]
        ids, indices = np.array(token_ids)[:, None], range(self._taken)
        answer = self._forward.over(1).run(0, ids, lengths, lengths + 1, indices, logits=logits)
        lengths += 1
        return answer.next_ids, answer.logits

    def cache(self, row: int) -> dict[str, Floats]:
        """A row's keys and values [1, n_head, length, head_size] by their names as outputs; views, not copies."""
        return self._forward.cache.row(row, int(self._lengths[row]))

    def remove(self, row: int) -> None:
        """Drop a row; the last one takes its place."""
        self._taken -= 1
        if row < self._taken:
            self._forward.cache.move(self._taken, row, int(self._lengths[self._taken]))
            self._lengths[row] = self._lengths[self._taken]

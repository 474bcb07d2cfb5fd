"""The test inputs on which a bundle is compared with PyTorch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from runtime.graphs.reference import position_ids

STEPS = 8  # token by token, where each run takes long
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Chunk:
    """The inputs of one run: ids [B, S], the mask [B, P+S] over past and new ids, positions [B, S]."""

    input_ids: Ids
    attention_mask: Ids
    position_ids: Ids


@dataclass(frozen=True)
class Case:
    """Ids [B, T], run in chunks of the given lengths."""

    name: str
    input_ids: Ids
    attention_mask: Ids
    lengths: tuple[int, ...]

    @property
    def padded(self) -> bool:
        return bool((self.attention_mask == 0).any())

    def whole(self) -> "Case":
        """The same ids in one run."""
        return replace(self, lengths=(self.input_ids.shape[1],))

    def rows(self) -> list[list[int]]:
        """The ids of each row, without its padding."""
        return [ids[mask == 1].tolist() for ids, mask in zip(self.input_ids, self.attention_mask, strict=True)]

    def chunks(self) -> Iterator[Chunk]:
        positions, start = position_ids(self.attention_mask), 0
        for length in self.lengths:
            end = start + length
            yield Chunk(self.input_ids[:, start:end], self.attention_mask[:, :end], positions[:, start:end])
            start = end


def make_cases(text_ids: list[int], vocab_size: int, n_positions: int) -> list[Case]:
    """Cases over the ids of a text, repeated to the needed length, and over random ids."""
    longest = min(48, n_positions - 1)
    text = np.resize(np.array(text_ids, np.int64), longest)
    random = np.random.default_rng(0).integers(0, vocab_size, longest)
    short, middle = max(2, longest // 9), longest // 2
    return [
        single("1 token", text[:1]),
        single(f"{short} tokens", text[:short]),
        single(f"{longest} tokens", text),
        single(f"{longest} random ids", random),
        left_padded(text, (short, max(2, middle), max(2, middle - 3))),
        single("token by token", text, (1,) * longest),
        single("chunks", text, (short, middle - short, longest - middle)),
    ]


def in_fewer_runs(cases: list[Case]) -> list[Case]:
    """The same ids, of which at most the last eight are read token by token, and those before at once.

    For graphs of which each run takes long, however short it is.
    """
    return [case if len(case.lengths) <= STEPS + 1 else ending_in_steps(case) for case in cases]


def ending_in_steps(case: Case) -> Case:
    before = sum(case.lengths) - STEPS
    return replace(case, name=f"{before} tokens, then token by token", lengths=(before, *[1] * STEPS))


def single(name: str, ids: Ids, lengths: tuple[int, ...] | None = None) -> Case:
    return Case(name, ids[None], np.ones((1, len(ids)), np.int64), lengths or (len(ids),))


def left_padded(ids: Ids, lengths: tuple[int, ...]) -> Case:
    """Rows of these lengths, padded on the left with id 0."""
    width = max(lengths)
    rows, mask = np.zeros((len(lengths), width), np.int64), np.zeros((len(lengths), width), np.int64)
    for row, length in enumerate(lengths):
        rows[row, width - length :] = ids[row : row + length]
        mask[row, width - length :] = 1
    return Case("left-padded batch", rows, mask, (width,))

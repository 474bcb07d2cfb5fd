"""Judges what int8 keys and values cost in perplexity at full context.

The cost is that of the cache alone: the same weights with float32 keys and values read the same texts in the same ways.
`export.parity.rounded` compares the tensors with PyTorch's.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GPT2LMHeadModel

from export.parity.logits import squares
from runtime.arrays import Floats
from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import Kind
from runtime.engine.scoring import target_logprobs
from runtime.graphs.chunks import CHUNK
from runtime.graphs.decode import DecodeGraph
from runtime.graphs.kinds import best_kind
from runtime.graphs.work import Slots, Work

MOST_COST = 0.001  # relative, of perplexity: a cache should cost less than any precision
READINGS = 8192  # in both ways together: `CacheQuality.cost` has what noise so many leave
LEAST_STEPS = 64  # of every text: a step over a row that is full is what an int8 cache is for
Texts = NDArray[np.int64]
Reading = Iterator[tuple[slice, list[Floats]]]


@dataclass(frozen=True)
class CacheQuality:
    """Perplexities of texts that fill the context, with float32 and with int8 keys and values.

    All `tokens` were read many ids at a time, then the texts' last ones, `stepped` in all, again and id by id.
    `agreement` is the share of positions where int8's most likely id is that of PyTorch in float32. `rounding` is the
    distance of int8's logits from float32's, relative to float32's.
    """

    weights: str
    tokens: int
    stepped: int
    at_once: tuple[float, float]
    token_by_token: tuple[float, float]
    agreement: float
    rounding: float
    most_cost: float = MOST_COST

    @property
    def cost(self) -> float:
        """What int8 adds to the perplexity, relative to float32's: the mean over all readings.

        Both ways of reading are the same arithmetic, so their mean is nearer to the truth than either: over 2,044
        tokens of the shipped checkpoint in int8, 1.7 % of noise in the logits moves the perplexity by 0.1 %, and over
        READINGS by half of that.
        """
        ways = ((self.tokens, self.at_once), (self.stepped, self.token_by_token))
        added = sum(count * math.log(int8 / float32) for count, (float32, int8) in ways)
        return math.expm1(added / (self.tokens + self.stepped))

    @property
    def passed(self) -> bool:
        return self.cost <= self.most_cost  # False for NaN

    @property
    def problem(self) -> str:
        """Why it fails, as part of a line."""
        return (
            f"perplexity {self.cost:+.2%} over the float32 cache's {self.at_once[0]:.2f} in {self.weights} "
            f"(at most {self.most_cost:+.1%})"
        )

    def line(self) -> str:
        return (
            f"int8 keys and values, {self.weights}: perplexity {self.cost:+.3%} over the float32 cache's "
            f"{self.at_once[0]:.2f} over {self.tokens:,} tokens at full context (at most {self.most_cost:.1%}), "
            f"logits {self.rounding:.2%} off by rounding, {self.agreement:.1%} of the likeliest tokens PyTorch's: "
            f"{'pass' if self.passed else 'FAIL'}"
        )

    def as_manifest(self) -> dict[str, Any]:
        return {**asdict(self), "cost": self.cost, "passed": self.passed}


def judge_cache(bundle: Bundle, precision: str, texts: Texts, expected: Texts) -> CacheQuality:
    """Read `texts` [B, S] with float32 and with int8 keys and values, by graphs that differ in nothing else.

    Args:
        expected: PyTorch's most likely ids [B, S - 1] in float32.
    """
    kinds: tuple[Kind, ...] = (best_kind(bundle.manifest, "decode", precision), "int8_cache")
    graphs = [DecodeGraph(bundle.graph_path(kind, precision), bundle.manifest.architecture) for kind in kinds]
    slots, steps = [graph.slots(len(texts)) for graph in graphs], steps_of(*expected.shape)
    at_once, token_by_token = (Sums(), Sums()), (Sums(), Sums())
    same, off, size = 0, 0.0, 0.0
    for part, (true, found) in side_by_side(slots, texts, 0, CHUNK):
        take(at_once, texts, part, (true, found))
        same += int((found.argmax(-1) == expected[:, part].ravel()).sum())
        off, size = np.add((off, size), squares(found, true)).tolist()
    for part, logits in side_by_side(slots, texts, expected.shape[1] - steps, 1):
        take(token_by_token, texts, part, logits)
    return CacheQuality(
        precision,
        expected.size,
        steps * len(texts),
        at_once=(at_once[0].perplexity, at_once[1].perplexity),
        token_by_token=(token_by_token[0].perplexity, token_by_token[1].perplexity),
        agreement=same / expected.size,
        rounding=math.sqrt(off / size),
    )


def steps_of(texts: int, length: int) -> int:
    """How many ids of each text are read id by id, after all `length` of each were read many at a time."""
    missing = -(-(READINGS - texts * length) // texts)
    return min(max(missing, LEAST_STEPS), length)


class Sums:
    """The sum of log-probabilities, and of how many."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    @property
    def perplexity(self) -> float:
        return math.exp(-self.total / self.count)

    def add(self, logprobs: Sequence[float]) -> None:
        self.total, self.count = self.total + math.fsum(logprobs), self.count + len(logprobs)


def take(sums: Sequence[Sums], texts: Texts, part: slice, logits: Sequence[Floats]) -> None:
    """Add the log-probabilities of what follows a part of texts."""
    following = texts[:, part.start + 1 : part.stop + 1].ravel().tolist()
    for each, rows in zip(sums, logits, strict=True):
        each.add(target_logprobs(rows, following))


def side_by_side(slots: Sequence[Slots], texts: Texts, first: int, most: int) -> Reading:
    """Parts of at most so many ids from the `first` on, and the logits [B * part, V] after them in each of the slots.

    All texts run at once. Slots hold the ids before the first; what they hold after it is written again.
    """
    last = texts.shape[1] - 1
    for start in range(first, last, most):
        part = slice(start, min(start + most, last))
        works = [Work(row, ids, start, len(ids), logits=True) for row, ids in enumerate(texts[:, part].tolist())]
        yield part, [np.concatenate([answer.logits for answer in each.run(works)]) for each in slots]


@torch.no_grad()
def likeliest(model: GPT2LMHeadModel, texts: Texts) -> Texts:
    """PyTorch's most likely ids [B, S - 1] after each id but the last."""
    found = [model(torch.from_numpy(text[None, :-1])).logits[0].argmax(-1).numpy() for text in texts]
    return np.stack(found)

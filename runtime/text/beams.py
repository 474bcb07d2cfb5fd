"""Beam search over one prompt: which beams go on after each step and which are given. No ONNX.

Its rules are those of transformers.generation (4.57): a beam's score is the sum of its tokens' log-probabilities after
the processors, over its length to the power of `length_penalty` once it has ended.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from runtime.arrays import Floats, log_softmax
from runtime.text.logprobs import highest
from runtime.text.processors import Processors

EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Beams:
    """How to search: transformers' options of these names."""

    num_beams: int
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False


class Beam(NamedTuple):
    """Generated ids, the sum of their log-probabilities, and the processors that know them."""

    ids: tuple[int, ...]
    score: float
    processors: Processors


class Candidate(NamedTuple):
    """A beam and one more id, with the score of both."""

    score: float
    beam: Beam
    token: int


class BeamSearch:
    """The beams of one prompt.

    Args:
        prompt_ids: At least one.
        eos_ids: Ids that end a beam.
        limit: The most tokens of a beam, 1 or more.

    Attributes:
        prompt_ids: Of the prompt.
        running: The beams that go on, best first; one before the first step.
        finished: Whether no beam need go on.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        beams: Beams,
        processors: Processors,
        *,
        eos_ids: Collection[int],
        limit: int,
    ) -> None:
        self.prompt_ids = prompt_ids
        self._beams = beams
        self._eos_ids = eos_ids
        self._limit = limit
        self._ended: list[tuple[float, tuple[int, ...]]] = []  # the best so far, best first
        self.running = [Beam((), 0.0, processors)]
        self.finished = False

    def advance(self, logits: Sequence[Floats]) -> None:
        """Take the logits [V] after each running beam."""
        most, length = self._beams.num_beams, len(self.running[0].ids) + 1
        candidates = self._candidates(logits, most * max(2, 1 + len(self._eos_ids)))
        ends = [each.token in self._eos_ids or length == self._limit for each in candidates]
        if not self._closed:
            self._end([each for each, end in zip(candidates[:most], ends, strict=False) if end], length)
        going = [each for each, end in zip(candidates, ends, strict=True) if not end][:most]
        self.running = [followed(each) for each in going]
        self.finished = not going or self._closed or not self._improves(length)

    def best(self, count: int) -> list[tuple[int, ...]]:
        """The ids of the best beams, best first."""
        return [ids for _, ids in self._ended[:count]]

    @property
    def _full(self) -> bool:
        return len(self._ended) == self._beams.num_beams

    @property
    def _closed(self) -> bool:
        """Whether no other beam may end any more."""
        return self._full and self._beams.early_stopping is True

    def _candidates(self, logits: Sequence[Floats], count: int) -> list[Candidate]:
        found = []
        for beam, row in zip(self.running, logits, strict=True):
            scores = beam.processors.change(log_softmax(row))
            best = highest(scores, min(count, len(scores)))
            found += [Candidate(beam.score + float(scores[token]), beam, int(token)) for token in best]
        return sorted(found, key=lambda each: each.score, reverse=True)[:count]

    def _end(self, candidates: Sequence[Candidate], length: int) -> None:
        scale = length**self._beams.length_penalty
        self._ended += [(each.score / scale, (*each.beam.ids, each.token)) for each in candidates]
        self._ended = sorted(self._ended, key=lambda each: each[0], reverse=True)[: self._beams.num_beams]

    def _improves(self, length: int) -> bool:
        """Whether the best running beam could still end better than the worst of those that have ended."""
        never = self._beams.early_stopping == "never" and self._beams.length_penalty > 0
        possible = self.running[0].score / (self._limit if never else length) ** self._beams.length_penalty
        return not self._full or possible > self._ended[-1][0]


def followed(candidate: Candidate) -> Beam:
    beam, token = candidate.beam, candidate.token
    return Beam((*beam.ids, token), candidate.score, beam.processors.followed_by(token))

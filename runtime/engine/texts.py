"""Texts in the scheduler's hands: one that is generated, and one that is scored."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Protocol

import numpy as np

from runtime.arrays import log_softmax
from runtime.graphs.work import Answer, Work
from runtime.text.completion import Completion
from runtime.text.generation import NO_LOGITS, Generation

AHEAD = 16  # tokens that a stream may have before its reader asks for them
MOST_FORCED = 32  # ids in a run that a grammar forces: each has logits, of 200 kB for GPT-2's vocabulary
CHUNK = 64  # positions whose logits are held at once: 13 MB for GPT-2's vocabulary


class Drafter(Protocol):
    """Drafts the next ids of a text."""

    def draft(self, ids: Sequence[int], most: int) -> list[int]:
        """At most `most` ids that may follow `ids`."""

    def judge(self, drafted: int, accepted: int) -> None:
        """Learn how many ids of a draft were right."""


class Text(ABC):
    """Ids, of which a slot has read some.

    Attributes:
        ids: Of the prompt, then of what was generated.
        read: How many of them the slot has read.
        reused: How many of them it did not have to read when the text began, as some slot had read them; None before.
        slot: The slot that holds it, if any.
        arrived: When it was made, as `time.monotonic` has it; `began` when it had a slot, None before.
        cancelled: Whether its caller has left; the next step frees its slot.
        error: Why it could not go on.
        owner: Who waits for all of its texts at once, such as a list's caller; None if somebody waits for this one.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)
        self.read = 0
        self.reused: int | None = None
        self.arrived = monotonic()
        self.began: float | None = None
        self.slot: int | None = None
        self.cancelled = False
        self.error: BaseException | None = None
        self.owner: object = None

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether there is nothing left to run."""

    @property
    @abstractmethod
    def most_ids(self) -> int:
        """The most ids that it can have."""

    @abstractmethod
    def work(self, slot: int, most: int) -> Work:
        """What to run next in `slot`: at most `most` ids, 1 or more, and a draft after them."""

    @abstractmethod
    def take(self, work: Work, answer: Answer) -> None:
        """Take the answer to `work`."""

    def take_ids(self, token_ids: Sequence[int]) -> None:
        """Take the ids of steps that a device fed itself; only a `plain` text gets them."""
        raise NotImplementedError

    @property
    def reusable(self) -> int:
        """How many of its first ids need not be run where a slot has read them: all but the last."""
        return len(self.ids) - 1

    @property
    def decodes(self) -> bool:
        """Whether it runs one id after the other, and thus in every step."""
        return len(self.ids) - self.read == 1

    @property
    def paused(self) -> bool:
        """Whether it waits for its reader."""
        return False

    @property
    def plain(self) -> bool:
        """Whether it takes the most likely id after each one, and nothing else."""
        return False


class GeneratedText(Text):
    """A generation, which appends an id at each step, or several where a draft was right.

    Ids are drafted, one run computes what follows each, and the right ones are kept (Leviathan, Kalman, Matias 2022,
    arXiv:2211.17192, for greedy decoding). The output is that of one token per run. A run over several ids sums in
    another order, which matters where two ids are almost equally likely. The graph marks those ties; there the text
    after the prompt is run again, one token per run, and that result counts.

    Ids that a grammar forces are a draft that cannot be wrong, from the end of the prompt on. Like those of the prompt
    they are read together, and no tie is a reason to read them again.

    Args:
        drafters: Asked in turn until one has a draft.
        streamed: Whether a reader takes the text piece by piece.

    Attributes:
        first: When it had its first token, as `time.monotonic` has it; `last` when it had its newest. None before.
    """

    def __init__(self, generation: Generation, drafters: Sequence[Drafter] = (), *, streamed: bool = False) -> None:
        super().__init__(generation.prompt_ids)
        self.generation = generation
        self.streamed = streamed
        self._drafters = drafters
        self._drafter: Drafter | None = None
        self._drafted: list[int] = []
        self.first: float | None = None
        self.last: float | None = None
        self._drafts_ran = self._replays = False
        self._shown = self._seen = 0  # characters and tokens that the reader has
        self._ends: deque[tuple[int, int]] = deque()  # characters and tokens after each piece that it has not

    @property
    def finished(self) -> bool:
        return self.error is not None or self.generation.finish_reason is not None

    @property
    def most_ids(self) -> int:
        return self.generation.most_ids

    @property
    def reusable(self) -> int:
        return 0 if self._unscored else super().reusable

    def is_ready(self) -> bool:
        """Whether its caller has something to see."""
        return self.finished or (self.streamed and len(self.generation.text) > self._shown)

    def completion(self) -> Completion:
        """The result once it has finished; raises what kept it from that."""
        if self.error is not None:
            raise self.error
        return self.generation.completion()

    def piece(self) -> str:
        """The next piece for its reader: what the next token that makes text final has made final; "" if none has."""
        shown = self._shown
        if self._ends:
            self._shown, self._seen = self._ends.popleft()
        return self.generation.text[shown : self._shown]

    @property
    def told(self) -> tuple[list[int], str]:
        """The tokens and the text that the reader has."""
        if self.seen:
            return self.generation.token_ids, self.generation.text
        return self.generation.token_ids[: self._seen], self.generation.text[: self._shown]

    @property
    def seen(self) -> bool:
        """Whether nothing is left for its reader."""
        return self.finished and len(self.generation.text) == self._shown

    @property
    def paused(self) -> bool:
        return self.streamed and self.is_ready() and len(self.generation.token_ids) - self._seen >= AHEAD

    @property
    def decodes(self) -> bool:
        return self._replays or super().decodes

    @property
    def plain(self) -> bool:
        return self.generation.plain and not self._drafters and super().decodes

    def work(self, slot: int, most: int) -> Work:
        unscored = self._unscored
        pending = self.ids[self.read : self.read + (1 if self._replays else min(most, CHUNK) if unscored else most)]
        ends = self.read + len(pending) == len(self.ids)
        self._drafter = None
        self._drafted = self._draft() if ends and not (self._replays or unscored) else []
        answers = len(pending) if unscored else len(self._drafted) + 1 if ends else 0
        return Work(slot, [*pending, *self._drafted], self.read, answers, bool(unscored) or not self.generation.plain)

    @property
    def _unscored(self) -> int:
        """How many of the prompt's tokens still want a log-probability."""
        return len(self.generation.prompt_ids) - self.generation.unscored

    def _draft(self) -> list[int]:
        most = self.most_ids - len(self.ids) - 1
        if forced := self.generation.forced(min(most, MOST_FORCED)):
            return forced
        for drafter in self._drafters if most > 0 and self.generation.token_ids else ():
            if drafted := drafter.draft(self.ids, most):
                self._drafter = drafter
                return drafted
        return []

    def take(self, work: Work, answer: Answer) -> None:
        self.read = work.past_length + len(work.token_ids) - len(self._drafted)
        answer = self._score_prompt(work, answer)
        if self.finished or not len(answer.next_ids):
            return
        self._drafts_ran = bool(self._drafts_ran or self._drafter) and not self._replays
        self._replays = False
        accepted = 0
        for most_likely, logits, tied in zip(answer.next_ids.tolist(), answer.logits, answer.tied, strict=True):
            if tied and self._drafts_ran:
                self._replay()
                break
            self._append(self.generation.take(most_likely, logits))
            if self.finished or accepted == len(self._drafted) or self._drafted[accepted] != self.ids[-1]:
                break
            accepted += 1
            self.read += 1
        if self._drafter:
            self._drafter.judge(len(self._drafted), accepted)

    def _score_prompt(self, work: Work, answer: Answer) -> Answer:
        """Take what an answer says of the prompt; the rest of it is about what follows."""
        if not self._unscored:
            return answer
        for row, index in enumerate(range(work.past_length + 1, min(self.read + 1, len(self.generation.prompt_ids)))):
            if index == self.generation.unscored:  # those before it were scored before the text lost its slot
                self.generation.score_prompt(answer.logits[row])
        ahead = len(answer.next_ids) - 1 if self.read == len(self.ids) else len(answer.next_ids)
        return Answer(answer.next_ids[ahead:], answer.logits[ahead:], answer.tied[ahead:])

    def take_ids(self, token_ids: Sequence[int]) -> None:
        """Take the ids of greedy steps that the device fed itself; those past the end of the text are dropped."""
        for token in token_ids:
            if self.finished:
                return
            self._append(self.generation.take(token, NO_LOGITS))
            self.read += 1

    def _append(self, token: int) -> None:
        self.ids.append(token)
        self.last = monotonic()
        self.first = self.first or self.last
        characters = len(self.generation.text)
        if self.streamed and characters > (self._ends[-1][0] if self._ends else self._shown):
            self._ends.append((characters, len(self.generation.token_ids)))

    def _replay(self) -> None:
        """Run the text after the prompt again, one token per run."""
        self.read = len(self.generation.prompt_ids)
        self._replays = True


class ScoredText(Text):
    """A window of a text, whose log-probabilities are wanted from an id on.

    Attributes:
        logprobs: Those of `ids[first:]` so far.
    """

    def __init__(self, ids: Sequence[int], first: int) -> None:
        super().__init__(ids)
        self._first = first
        self.logprobs: list[float] = []
        self._told = 0

    @property
    def finished(self) -> bool:
        return self.error is not None or len(self.logprobs) == len(self.ids) - self._first

    def is_ready(self) -> bool:
        """Whether its caller has something to see."""
        return self.finished or len(self.logprobs) > self._told

    def news(self) -> int:
        """How many log-probabilities its caller has not been told of."""
        told, self._told = self._told, len(self.logprobs)
        return self._told - told

    @property
    def reusable(self) -> int:
        return self._first - 1

    def result(self) -> list[float]:
        """All log-probabilities; raises what kept it from having them."""
        if self.error is not None:
            raise self.error
        return self.logprobs

    @property
    def most_ids(self) -> int:
        return len(self.ids)

    @property
    def decodes(self) -> bool:
        return False

    def work(self, slot: int, most: int) -> Work:
        before = self._first - 1 - self.read  # ids that are read for nothing but their keys and values
        if before > 0:
            return Work(slot, self.ids[self.read : self.read + min(most, before)], self.read, 0, logits=False)
        chunk = self.ids[self.read : min(self.read + min(most, CHUNK), len(self.ids) - 1)]
        return Work(slot, chunk, self.read, len(chunk), logits=True)

    def take(self, work: Work, answer: Answer) -> None:
        self.read = work.past_length + len(work.token_ids)
        if work.answers:
            targets = self.ids[work.past_length + 1 : self.read + 1]
            self.logprobs += log_softmax(answer.logits)[np.arange(len(targets)), targets].tolist()

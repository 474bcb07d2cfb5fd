"""Steps of one text: DraftedStep checks drafts several ids per run, DeviceStep launches greedy steps on the device."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Floats
from runtime.graphs.state import DecodeState


class Drafter(Protocol):
    """Drafts the next ids of a text."""

    def draft(self, ids: Sequence[int], most: int) -> list[int]:
        """At most `most` ids that may follow `ids`."""

    def judge(self, drafted: int, accepted: int) -> None:
        """Learn how many ids of a draft were right."""


class Foreseen(NamedTuple):
    """The answer of a run after one drafted id."""

    most_likely: int
    logits: Floats
    tied: bool


class DraftedStep:
    """`DecodeState.step` for one text, which sometimes answers without a run.

    Ids are drafted, one run computes what follows each, and the right ones are kept (Leviathan, Kalman, Matias 2022,
    arXiv:2211.17192, for greedy decoding). The output is that of one token per run. A run over several ids sums in
    another order, which matters where two ids are almost equally likely. The graph marks those ties; there the text
    after the prompt is run again, one token per run, and that result counts.

    Args:
        state: Holds the part of the text that was read before.
        drafters: Asked in turn until one has a draft.
        known: Ids of the text that `state` has read.
        limit: The most tokens that the text will have.
        logits: Whether logits are wanted.
    """

    def __init__(
        self,
        state: DecodeState,
        drafters: Sequence[Drafter],
        known: Sequence[int],
        limit: int,
        *,
        logits: bool = True,
    ) -> None:
        self._state = state
        self._drafters = drafters
        self._ids = list(known)
        self._limit = limit
        self._logits = logits
        self._prompt_length = 0
        self._plain = True  # whether every run since the prompt was over one id
        self._ahead: deque[tuple[int, Foreseen]] = deque()  # a drafted id, and the answer after it
        self._drafter: Drafter | None = None
        self._drafted = self._accepted = 0

    def __call__(self, token_ids: Sequence[int]) -> tuple[int, Floats]:
        """The answer that `DecodeState.step` gives."""
        self._ids += token_ids
        if not self._prompt_length:
            self._prompt_length = len(self._ids)
            return self._step(token_ids)
        found = self._foreseen(token_ids) or self._run(token_ids)
        if found.tied and not self._plain:
            return self._run_plainly()
        return found.most_likely, found.logits

    def _step(self, token_ids: Sequence[int]) -> tuple[int, Floats]:
        return self._state.step(token_ids, logits=self._logits)

    def settle(self) -> None:
        """Rewind the state to the ids that were accepted."""
        self._state.rewind(len(self._ids))

    def _foreseen(self, token_ids: Sequence[int]) -> Foreseen | None:
        """The answer that the last run already gave, if its draft is right so far."""
        if self._ahead and [self._ahead[0][0]] == list(token_ids):
            self._accepted += 1
            return self._ahead.popleft()[1]
        return None

    def _run(self, token_ids: Sequence[int]) -> Foreseen:
        """Run `token_ids` and a draft; give the answer after `token_ids`, and keep those after the drafted ids."""
        self._end_draft()
        self._state.rewind(len(self._ids) - len(token_ids))
        drafted = self._draft()
        self._plain = self._plain and not drafted
        answer = self._state.read([*token_ids, *drafted], last=len(drafted) + 1, logits=self._logits)
        first, *following = map(Foreseen, answer.next_ids.tolist(), answer.logits, answer.tied)
        self._ahead.extend(zip(drafted, following, strict=True))
        return first

    def _draft(self) -> list[int]:
        most = self._limit - len(self._ids) - 1
        for drafter in self._drafters:
            drafted = drafter.draft(self._ids, most) if most > 0 else []
            if drafted:
                self._drafter, self._drafted, self._accepted = drafter, len(drafted), 0
                return drafted
        return []

    def _end_draft(self) -> None:
        """Tell the last draft's drafter how many of its ids were right."""
        self._ahead.clear()
        if self._drafter:
            self._drafter.judge(self._drafted, self._accepted)
            self._drafter = None

    def _run_plainly(self) -> tuple[int, Floats]:
        """Run the text after the prompt again, one token per run."""
        self._end_draft()
        self._state.rewind(self._prompt_length)
        for token in self._ids[self._prompt_length :]:
            answer = self._step([token])
        self._plain = True
        return answer


MOST_STEPS = 16  # per launch; the first launches are shorter, so that a stream begins at once
NO_LOGITS = np.empty(0, np.float32)


class DeviceStep:
    """Greedy steps that run on the device without the host, collected several at a time.

    While the host handles the ids of the last steps, the next steps run; ids past the end of a text are dropped.

    Args:
        most_ids: The most ids that the text can have, prompt included; the last of them is never run.
    """

    def __init__(self, state: DecodeState, most_ids: int) -> None:
        self._state = state
        self._most_ids = most_ids
        self._told: deque[int] = deque()
        self._under_way = False
        self._steps = 1

    def __call__(self, new_ids: Sequence[int]) -> tuple[int, NDArray[np.float32]]:
        """The most likely id after `new_ids`: the prompt at first, then always the id given last."""
        if not self._told:
            self._told.extend(self.settle() or [self._state.advance(new_ids)])
            self._launch(self._told[-1])
        return self._told.popleft(), NO_LOGITS

    def settle(self) -> list[int]:
        """Wait for the running steps, if any, and return their ids."""
        waited, self._under_way = self._under_way, False
        return self._state.collect() if waited else []

    def _launch(self, token_id: int) -> None:
        """Launch twice as many steps as last time, up to MOST_STEPS and the end of the text."""
        steps = min(self._steps, self._most_ids - 1 - self._state.length)
        if steps > 0:
            self._state.launch(token_id, steps)
            self._under_way = True
            self._steps = min(2 * steps, MOST_STEPS)

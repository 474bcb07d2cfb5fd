"""What runs over new ids of one text: a run that checks drafts, too, or steps that a device takes by itself."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.arrays import Floats
from runtime.graphs.state import DecodeState


class Drafter(Protocol):
    """Guesses how a text goes on."""

    def draft(self, ids: Sequence[int], most: int) -> list[int]:
        """At most `most` ids that may follow `ids`."""

    def judge(self, drafted: int, accepted: int) -> None:
        """Learn how many ids of a draft were right."""


class Foreseen(NamedTuple):
    """What a run says after one id."""

    most_likely: int
    logits: Floats
    tied: bool


class DraftedStep:
    """`DecodeState.step` for one text, which now and then answers without a run.

    Ids are drafted, one run says what would follow each, and the right ones are kept (Leviathan, Kalman, Matias 2022,
    arXiv:2211.17192, for greedy decoding). What comes out is what a token a run gives. But a run over several ids sums
    in another order, which matters where two ids are as good as equally likely; the graph says where, and there the
    text so far is read again, a token a run, and that decides.

    Args:
        state: Holds what was read of the text before.
        drafters: Asked in turn until one has a draft.
        known: Ids of the text that `state` has read.
        limit: Tokens of the text at most, as it will be.
        logits: Whether anybody reads them.
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
        self._plain = True  # whether a run has seen but one id, since the prompt
        self._ahead: deque[tuple[int, Foreseen]] = deque()  # an id drafted, and what comes after it
        self._drafter: Drafter | None = None
        self._drafted = self._accepted = 0

    def __call__(self, token_ids: Sequence[int]) -> tuple[int, Floats]:
        """What `DecodeState.step` says."""
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
        """Leave the state as if every id had been a run of its own."""
        self._state.rewind(len(self._ids))

    def _foreseen(self, token_ids: Sequence[int]) -> Foreseen | None:
        """What the last run said already, if the draft was right so far."""
        if self._ahead and [self._ahead[0][0]] == list(token_ids):
            self._accepted += 1
            return self._ahead.popleft()[1]
        return None

    def _run(self, token_ids: Sequence[int]) -> Foreseen:
        """After `token_ids`; what comes after drafted ids is kept."""
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
        """Tell who made the last draft how good it was."""
        self._ahead.clear()
        if self._drafter:
            self._drafter.judge(self._drafted, self._accepted)
            self._drafter = None

    def _run_plainly(self) -> tuple[int, Floats]:
        """Read again what came after the prompt, a token a run."""
        self._end_draft()
        self._state.rewind(self._prompt_length)
        for token in self._ids[self._prompt_length :]:
            answer = self._step([token])
        self._plain = True
        return answer


MOST_STEPS = 16  # told at a time; the first ones come alone, so that a stream begins at once
NO_LOGITS = np.empty(0, np.float32)


class DeviceStep:
    """Greedy steps that a device takes by itself, told to the host some at a time.

    While the host looks at what the last steps said, the next ones are under way; what they say past the end of a text
    is never seen.

    Args:
        most_ids: Ids that the text has at most, prompt included; the last of them is never run over.
    """

    def __init__(self, state: DecodeState, most_ids: int) -> None:
        self._state = state
        self._most_ids = most_ids
        self._told: deque[int] = deque()
        self._under_way = False
        self._steps = 1

    def __call__(self, new_ids: Sequence[int]) -> tuple[int, NDArray[np.float32]]:
        """The most likely id after `new_ids`: the prompt, then each time what was said last."""
        if not self._told:
            self._told.extend(self.settle() or [self._state.advance(new_ids)])
            self._launch(self._told[-1])
        return self._told.popleft(), NO_LOGITS

    def settle(self) -> list[int]:
        """Wait for what is under way; what it says."""
        waited, self._under_way = self._under_way, False
        return self._state.collect() if waited else []

    def _launch(self, token_id: int) -> None:
        """Twice as many steps as last time, as far as the text may get."""
        steps = min(self._steps, self._most_ids - 1 - self._state.length)
        if steps > 0:
            self._state.launch(token_id, steps)
            self._under_way = True
            self._steps = min(2 * steps, MOST_STEPS)

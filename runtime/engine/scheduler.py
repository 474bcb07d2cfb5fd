"""The scheduler: which texts run which ids in a step. It knows slots and ids, and no ONNX."""

from collections import deque
from collections.abc import Sequence
from time import monotonic

from runtime.engine.slots import Place, SlotTable
from runtime.engine.texts import Text
from runtime.graphs.work import Answer, Slots, Work

PREFILL_TOKENS = 512  # of prompts in a step in which nothing else runs; more in one run is no faster
MOST_STEPS = 16  # per launch; the first launches are shorter, so that a stream begins at once

Plan = list[tuple[Text, Work]]


class Scheduler:
    """Texts that share the steps of some slots.

    Texts that decode are in every step. What is left of a step's tokens goes to prompts, the oldest first, so that a
    long one never stops the others for long. A slot keeps what it has read after its text has ended: a new text that
    begins alike reads only what is new. One thread at a time may call `step`; `add` and `cancel` may be called from
    any.
    """

    def __init__(self, slots: Slots, *, prefix_cache: bool = True) -> None:
        self._slots = slots
        self._table = SlotTable(slots.count, prefix_cache=prefix_cache)
        self._waiting: deque[Text] = deque()
        self._running: list[Text] = []  # in the order in which they took their slots
        self._launched: list[Text] = []
        self._steps = 1

    def add(self, text: Text) -> None:
        """Queue a text; a step gives it a slot as soon as one is free."""
        self._waiting.append(text)

    def cancel(self, text: Text) -> None:
        """Drop a text at the next step, whether it waits or runs."""
        text.cancelled = True

    @property
    def slots(self) -> int:
        """How many texts can run at once."""
        return self._slots.count

    @property
    def busy(self) -> bool:
        """Whether a text that may go on has a slot or waits for one."""
        return any(not (text.finished or text.cancelled) for text in (*self._running, *self._waiting))

    def step(self) -> list[Text]:
        """Run one step; the texts that gained something by it, or failed."""
        if self._launched:
            return self._collect()
        self._free_ended()
        failed = self._admit()
        plan = self._plan()
        if not plan or self._launch(plan):
            return failed + [text for text, _ in plan if text.error]
        return failed + self._run(plan)

    def _free_ended(self) -> None:
        for text in [text for text in self._running if text.cancelled or text.finished]:
            self._leave(text)
        if any(text.cancelled or text.finished for text in self._waiting):
            self._waiting = deque(text for text in self._waiting if not (text.cancelled or text.finished))

    def _leave(self, text: Text) -> None:
        assert text.slot is not None
        self._running.remove(text)
        for slot in self._table.leave(text.slot):
            self._slots.give_back(slot)
        text.slot = None
        if isinstance(text.error, MemoryError):
            self._forget_kept()

    def _forget_kept(self) -> bool:
        """Give back all slots whose text has ended; whether there were any."""
        slots = self._table.forget_kept()
        for slot in slots:
            self._slots.give_back(slot)
        return bool(slots)

    def _admit(self) -> list[Text]:
        """Give slots to waiting texts, in their order; return those that could not have one."""
        failed, held = list[Text](), list[Text]()
        while self._waiting:
            text = self._waiting.popleft()
            if text.paused:
                held.append(text)
                continue
            begins = text.ids[: text.reusable]
            place = self._table.place(begins) or self._place_of_paused(begins)
            if place is None:
                self._waiting.appendleft(text)
                break
            if self._table.about_to_read(begins, place.shared):
                held.append(text)
                continue
            try:
                self._begin(text, place)
            except MemoryError as error:
                if self._forget_kept():
                    self._waiting.appendleft(text)
                    continue
                text.error = error
                failed.append(text)
        self._waiting.extendleft(reversed(held))
        return failed

    def _place_of_paused(self, begins: Sequence[int]) -> Place | None:
        """The slot of a text that waits for its reader, and reads its ids again when that comes back."""
        paused = next((text for text in self._running if text.paused), None)
        if paused is None:
            return None
        self._leave(paused)
        paused.read = 0
        self._waiting.append(paused)
        return self._table.place(begins)

    def _begin(self, text: Text, place: Place) -> None:
        self._slots.reserve(place.slot, text.most_ids)
        if place.source is not None:
            self._slots.copy(place.source, place.slot, place.shared)
        text.slot, text.read = place.slot, place.shared
        if text.began is None:
            text.began, text.reused = monotonic(), place.shared
        self._table.take(place.slot, text)
        self._running.append(text)
        self._steps = 1

    def _plan(self) -> Plan:
        """Every text that decodes, and parts of prompts, the oldest first."""
        texts = [text for text in self._running if not text.paused]
        plan = [work_of(text, 1) for text in texts if text.decodes]
        room = PREFILL_TOKENS if wait_together(texts) else prompt_tokens(len(plan))
        for text in texts:
            if room > 0 and not text.decodes:
                plan.append(work_of(text, room))
                room -= len(plan[-1][1].token_ids)
        return plan

    def _run(self, plan: Plan) -> list[Text]:
        """Run a plan; if that fails, each of its works alone, so that a text fails for itself only."""
        try:
            answers = self._slots.run([work for _, work in plan])
        except Exception as error:
            if len(plan) == 1:
                plan[0][0].error = error
                return [plan[0][0]]
            return [text for part in plan for text in self._run([part])]
        for (text, work), answer in zip(plan, answers, strict=True):
            take(text, work, answer)
        return [text for text, _ in plan]

    def _launch(self, plan: Plan) -> bool:
        """Launch steps that a device feeds itself, if that is all there is to run; if not, the plan is to be run."""
        texts, works = [text for text, _ in plan], [work for _, work in plan]
        if not self._slots.launches or self._waiting or not all(text.plain for text in texts):
            return False
        left = min(text.most_ids - 1 - work.past_length for text, work in plan)
        steps = min(self._steps, left, self._slots.steps(works))
        if steps < 1:
            return False
        try:
            self._slots.launch(works, steps)
        except Exception as error:
            if len(texts) > 1:
                return False
            texts[0].error = error
            return True
        self._launched, self._steps = texts, min(2 * steps, MOST_STEPS)
        return True

    def _collect(self) -> list[Text]:
        """Take the ids of launched steps; while they are handed out, the next steps run."""
        texts, self._launched = self._launched, []
        try:
            said = self._slots.collect()
        except Exception as error:
            for text in texts:
                text.error = error
            return texts
        following = [
            (text, Work(work_slot(text), [ids[-1]], text.read + len(ids)))
            for text, ids in zip(texts, said, strict=True)
        ]
        stays = not any(text.cancelled or text.paused or text.finished for text in texts)
        if stays and len(texts) == len(self._running):
            self._launch(following)
        for text, ids in zip(texts, said, strict=True):
            take_ids(text, ids)
        if any(text.finished for text in texts) and self._launched:
            self._collect()
        return texts


def prompt_tokens(decoding: int) -> int:
    """How many tokens of prompts run in a step beside so many texts that decode.

    For GPT-2 small on two CPUs, a step of one text takes as long as 10 tokens of a prompt, and one of 16 as long as 30:
    the texts that decode wait at most four times as long as without prompts.
    """
    return 32 + 2 * decoding if decoding else PREFILL_TOKENS


def wait_together(texts: Sequence[Text]) -> bool:
    """Whether one caller waits for all of them, and for none in particular."""
    owners = {id(text.owner) for text in texts}
    return len(owners) == 1 and texts[0].owner is not None


def work_slot(text: Text) -> int:
    assert text.slot is not None
    return text.slot


def work_of(text: Text, most: int) -> tuple[Text, Work]:
    return text, text.work(work_slot(text), most)


def take(text: Text, work: Work, answer: Answer) -> None:
    """Hand an answer out; a text that cannot take it fails for itself only."""
    try:
        text.take(work, answer)
    except BaseException as error:  # of a caller's own function, whoever drives
        text.error = error


def take_ids(text: Text, token_ids: Sequence[int]) -> None:
    try:
        text.take_ids(token_ids)
    except Exception as error:
        text.error = error

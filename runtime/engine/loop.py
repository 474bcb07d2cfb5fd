"""The loop that callers share: whoever waits, drives.

A model has no thread of its own. A caller adds its text, and steps the scheduler until the text is done, which takes
along what other threads have added; they wait meanwhile, and one of them drives on when the driver leaves. In asyncio,
a thread of the event loop's executor drives while somebody awaits.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from typing import Generic, TypeVar

from runtime.engine.interrupts import interrupts_held
from runtime.engine.scheduler import Scheduler
from runtime.engine.texts import Text
from runtime.exits import native

T = TypeVar("T", bound=Text)
Wake = Callable[[], object]


class Loop:
    """Steps a scheduler on behalf of all who wait."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._lock = threading.Lock()  # held for moments; guards the two below
        self._driven = False
        self._waiting: dict[Wake, Callable[[], bool]] = {}  # how to wake who waits, and whether what they wait for came

    @property
    def slots(self) -> int:
        """How many texts can run at once."""
        return self._scheduler.slots

    @property
    def busy(self) -> bool:
        """Whether a slot holds a text that may go on, or one waits for a slot."""
        return self._scheduler.busy

    @contextmanager
    def running(self, text: Text) -> Iterator[None]:
        """Run a text while the block waits for it; if it is not done when the block ends, the next step drops it."""
        self._scheduler.add(text)
        try:
            yield
        finally:
            self._scheduler.cancel(text)

    def run_all(self, texts: Iterable[T], most: int) -> Iterator[T]:
        """Run texts, at most `most` at once, and yield each when it has finished."""
        with self._several(texts, most) as several:
            while several.begin():
                self.wait(several.ready)
                yield from several.finished()

    async def run_all_async(self, texts: Iterable[T], most: int) -> AsyncIterator[T]:
        """The same for asyncio."""
        with self._several(texts, most) as several:
            while several.begin():
                await self.wait_async(several.ready)
                for text in several.finished():
                    yield text

    @contextmanager
    def _several(self, texts: Iterable[T], most: int) -> Iterator["Several[T]"]:
        several = Several(self._scheduler, texts, most)
        try:
            yield several
        finally:
            for text in several.active:
                self._scheduler.cancel(text)

    def wait(self, ready: Callable[[], bool]) -> None:
        """Drive, or wait while another caller drives, until `ready`."""
        woken = threading.Event()
        wake = woken.set
        try:
            while not ready():
                if self._takes_wheel(wake, ready):
                    self._drive(ready)
                else:
                    woken.wait()
                    woken.clear()
        finally:
            self._gone(wake)

    async def wait_async(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready`, while a thread of the event loop's executor drives for all who wait."""
        events = asyncio.get_running_loop()
        while not ready():
            woken = events.create_future()
            wake = partial(settle, events, woken)
            try:
                if self._takes_wheel(wake, ready):
                    with self._lock:
                        self._waiting[wake] = ready
                    driving = events.run_in_executor(None, self._drive, self._nobody_waits)
                    driving.add_done_callback(partial(tell_failure, woken))
                await woken
            finally:
                self._gone(wake)

    def _nobody_waits(self) -> bool:
        return not self._waiting

    def _takes_wheel(self, wake: Wake, ready: Callable[[], bool]) -> bool:
        """Whether the caller drives; else `wake` is called when it is `ready`, or when nobody drives any more."""
        with self._lock:
            if not self._driven:
                self._driven = True
                return True
            self._waiting[wake] = ready
        if ready():  # since the driver looked last
            wake()
        return False

    def _drive(self, until: Callable[[], bool]) -> None:
        try:
            with interrupts_held() as let_through:
                while not until():
                    with native():
                        self._scheduler.step()
                    self._wake_ready()
                    let_through()
        finally:
            self._leave_wheel()

    def _wake_ready(self) -> None:
        with self._lock:
            woken = [wake for wake, ready in self._waiting.items() if ready()]
            for wake in woken:
                del self._waiting[wake]
        for wake in woken:
            wake()

    def _leave_wheel(self) -> None:
        """Let the one who has waited longest drive on."""
        with self._lock:
            self._driven = False
            following = self._next()
        if following:
            following()

    def _gone(self, wake: Wake) -> None:
        """Forget one who waits no more; if it was to drive, another does."""
        with self._lock:
            self._waiting.pop(wake, None)
            following = None if self._driven else self._next()
        if following:
            following()

    def _next(self) -> Wake | None:
        """Who has waited longest, and waits no more."""
        following = next(iter(self._waiting), None)
        if following:
            del self._waiting[following]
        return following


class Several(Generic[T]):
    """Texts of which at most `most` are under way at once."""

    def __init__(self, scheduler: Scheduler, texts: Iterable[T], most: int) -> None:
        self._scheduler = scheduler
        self._source = iter(texts)
        self._most = most
        self._owner = object()  # not this object, by which the scheduler would refer to itself and outlive its model
        self.active: list[T] = []

    def begin(self) -> bool:
        """Add as many as there is room for; whether any is under way."""
        for text in islice(self._source, self._most - len(self.active)):
            text.owner = self._owner
            self._scheduler.add(text)
            self.active.append(text)
        return bool(self.active)

    def ready(self) -> bool:
        return any(text.finished for text in self.active)

    def finished(self) -> list[T]:
        done = [text for text in self.active if text.finished]
        self.active = [text for text in self.active if text not in done]
        return done


def settle(events: asyncio.AbstractEventLoop, woken: "asyncio.Future[None]") -> None:
    """Settle a future from any thread, unless its event loop has ended."""
    with suppress(RuntimeError):
        events.call_soon_threadsafe(end, woken)


def end(woken: "asyncio.Future[None]") -> None:
    if not woken.done():
        woken.set_result(None)


def tell_failure(woken: "asyncio.Future[None]", driving: "asyncio.Future[None]") -> None:
    """Whoever awaits hears why the thread that drives failed."""
    error = None if driving.cancelled() else driving.exception()
    if error is not None and not woken.done():
        woken.set_exception(error)

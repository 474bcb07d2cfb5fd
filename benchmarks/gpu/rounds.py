"""Sides that take turns in one process, A B C A B C …, until all rounds are done or the time is over."""

import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from benchmarks.gpu.plan import one_line

PAUSE = 0.2  # seconds, for threads of the turn before to stop spinning
Turn = Callable[[], Any]
Side = Callable[[int], Any]  # is asked for so many tokens
Make = Callable[[], Side]


def make_sides(makers: Mapping[str, Make], first: int, deadline: float) -> tuple[dict[str, Side], dict[str, str]]:
    """Each made and warmed up twice, as what compiles and captures does so in its first runs; why others are not.

    None may take more than half of the time that is left, so that the others can still take their turns.
    """
    sides: dict[str, Side] = {}
    failed: dict[str, str] = {}
    for name, make in makers.items():
        started = time.time()
        try:
            with time_limit((deadline - started) / 2):
                sides[name] = warm(make(), first)
        except Exception as error:
            failed[name] = one_line(error)
        print(f"  {name}: {failed.get(name, 'ready')} after {time.time() - started:.1f} s", file=sys.stderr, flush=True)
    return sides, failed


def warm(side: Side, first: int) -> Side:
    for tokens in (first, 1) * 2:
        side(tokens)
    return side


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """TimeoutError in the midst of what takes longer."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not ready after {seconds:.0f} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(1.0, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def take_rounds(
    turns: Mapping[str, Turn], rounds: int, deadline: float, failed: dict[str, str]
) -> dict[str, list[Any]]:
    """What each side's turns gave; one that fails misses the others. At least one round is gone through."""
    found: dict[str, list[Any]] = {name: [] for name in turns}
    each = 0.0
    for _ in range(rounds):
        started = time.time()
        if started + each > deadline and each:
            break
        for name in [name for name in turns if name not in failed]:
            take_turn(name, turns[name], found, failed)
        each = time.time() - started
    return {name: taken for name, taken in found.items() if name not in failed}


def take_turn(name: str, turn: Turn, found: dict[str, list[Any]], failed: dict[str, str]) -> None:
    time.sleep(PAUSE)
    try:
        found[name].append(turn())
    except Exception as error:
        failed[name] = one_line(error)

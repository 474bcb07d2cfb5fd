"""Sides that take turns, so that whatever else the machine does meets them alike."""

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from benchmarks.common.terminal import counted

PAUSE = 0.5  # seconds between turns, for the last side's threads to stop spinning
Answer = TypeVar("Answer")


class SideError(RuntimeError):
    """A side that cannot go on, with the reason in one line."""


def take_turns(
    sides: Mapping[str, Callable[[], Answer]], rounds: int, description: str
) -> tuple[dict[str, list[Answer]], dict[str, str]]:
    """The answers of each side's turns, A B C A B C …, and why sides fell out, if any did.

    The first round warms up and is not counted. A side that fails misses the rounds that are left; the others go on.
    """
    answers: dict[str, list[Answer]] = {side: [] for side in sides}
    failed: dict[str, str] = {}
    with counted() as progress:
        task = progress.add_task(description, total=(rounds + 1) * len(sides))
        for side in [side for _ in range(rounds + 1) for side in sides]:
            progress.update(task, description=f"{description}: {side}")
            if side not in failed:
                time.sleep(PAUSE)
                take_turn(side, sides[side], answers, failed)
            progress.advance(task)
        progress.update(task, description=description)
    return {side: answers[side][1:] for side in sides if side not in failed}, failed


def take_turn(side: str, turn: Callable[[], Answer], answers: dict[str, list[Answer]], failed: dict[str, str]) -> None:
    try:
        answers[side].append(turn())
    except SideError as error:
        failed[side] = str(error)

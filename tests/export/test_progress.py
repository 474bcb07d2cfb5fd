"""What a step tells of the time that is left."""

import pytest

from export import progress
from export.progress import Progress, span


def test_what_is_left_takes_as_long_as_what_is_done(monkeypatch):
    now, shown = [100.0], []
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    told = Progress(shown.append)
    told.count(0, 12, "blocks")
    now[0] += 30  # 3 blocks of 10 s: 9 more take 90
    told.count(3, 12, "blocks")
    now[0] += 290  # 320 s for 4: 8 more take 640
    told.count(4, 12, "blocks")
    told.count(12, 12, "blocks")
    told("the head")
    assert shown == [
        "0 of 12 blocks",
        "3 of 12 blocks, 90 s left",
        "4 of 12 blocks, 10 min 40 s left",
        "12 of 12 blocks, 0 s left",
        "the head",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (99.4, "99 s"), (100, "1 min 40 s"), (119.7, "2 min 0 s")])
def test_spans_in_words(seconds, text):
    assert span(seconds) == text

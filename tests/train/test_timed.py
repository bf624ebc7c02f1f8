"""Seconds of waiting, on a clock that the test moves."""

import time
from collections.abc import Iterator

import pytest

from roli_fast.train.metrics import Timed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def items(clock: list[float], waits: list[float]) -> Iterator[int]:
    for number, seconds in enumerate(waits):
        clock[0] += seconds
        yield number


def test_what_happens_between_two_items_is_no_waiting(clock: list[float]) -> None:
    timed, seen = Timed(items(clock, [5.0, 1.0, 2.0])), []
    for item in timed:
        seen.append(item)
        clock[0] += 1000.0
    assert seen == [0, 1, 2]
    assert timed.taken() == 8.0


def test_each_second_is_told_once(clock: list[float]) -> None:
    timed = Timed(items(clock, [5.0, 1.0]))
    assert [timed.taken() for _ in timed] == [5.0, 1.0]
    assert timed.taken() == 0.0


def test_an_error_passes_and_the_source_is_closed(clock: list[float]) -> None:
    closed = []

    def failing() -> Iterator[int]:
        try:
            clock[0] += 3.0
            yield 1
            raise ValueError("damaged")
        finally:
            closed.append(True)

    with pytest.raises(ValueError, match="damaged"):
        list(Timed(failing()))
    for _ in Timed(failing()):
        break
    assert closed == [True, True]

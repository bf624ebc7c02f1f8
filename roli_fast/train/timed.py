"""How long a loop waited for what it iterates over."""

import time
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Timed(Generic[T]):
    """Iterates over `source` and counts the seconds in which it was asked for the next item.

    The start counts as well: workers that are forked, the first batch that they decode. Where a GPU
    computes meanwhile, its host waits and it does not: the seconds are an upper bound then.
    """

    def __init__(self, source: Iterable[T]) -> None:
        self._source = source
        self._seconds = 0.0

    def __iter__(self) -> Iterator[T]:
        started = time.perf_counter()
        for item in self._source:
            self._seconds += time.perf_counter() - started
            yield item
            started = time.perf_counter()
        self._seconds += time.perf_counter() - started

    def taken(self) -> float:
        """The seconds since this was last asked for."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

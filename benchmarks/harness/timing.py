"""Interleaved timing: every round times each candidate once, so a slow moment hits all of them.

pytest-benchmark cannot do that: its fixture runs one function to the end before the next begins,
and compares medians of runs that lie minutes apart. So the clock is ours.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

SHORTEST = 2e-3  # seconds; quicker calls are repeated up to this before the clock is read
Call = Callable[[], object]


@dataclass(frozen=True)
class Plan:
    """How long a case is measured: at least `least` rounds, at most `most`, else `budget` s."""

    least: int = 3
    most: int = 15
    budget: float = 60.0


@dataclass(frozen=True)
class Times:
    """Seconds of every candidate in every round; all lists are equally long."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def ratio(self, numerator: str, denominator: str) -> float | None:
        """Median over the rounds of one's seconds over the other's; None if one was not run."""
        pair = [self.seconds.get(name) for name in (numerator, denominator)]
        if pair[0] is None or pair[1] is None:
            return None
        return statistics.median(a / b for a, b in zip(pair[0], pair[1], strict=True))

    def median(self, name: str) -> float | None:
        """Seconds; None if it was not run."""
        return statistics.median(self.seconds[name]) if name in self.seconds else None

    def quartiles(self, name: str) -> list[float]:
        """First and third, in seconds; those of one round are that round."""
        values = self.seconds[name]
        if len(values) == 1:
            return values * 2
        return statistics.quantiles(values, n=4, method="inclusive")[::2]


def seconds(call: Call, repeats: int, device: str) -> float:
    """Seconds for one call."""
    synchronize = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize()
    return (time.perf_counter() - started) / repeats


def measure(
    calls: dict[str, Call], plan: Plan, device: str, repeats: dict[str, int] | None = None
) -> Times:
    """All candidates, round by round. The caller has warmed them up.

    Args:
        calls: name -> what is timed.
        plan: how many rounds.
        device: "cpu" or "cuda".
        repeats: calls between two looks at the clock; 1 where nothing is said.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    started = time.perf_counter()
    for number in range(plan.most):
        if number >= plan.least and time.perf_counter() - started > plan.budget:
            break
        order = list(calls.items())
        for name, call in order[::-1] if number % 2 else order:  # nobody always follows the same
            times[name].append(seconds(call, (repeats or {}).get(name, 1), device))
    return Times(times)


def warm(calls: dict[str, Call], device: str) -> dict[str, int]:
    """Run everything some times (compile, touch the memory); how often a short call is repeated."""
    repeats = {}
    for name, call in calls.items():
        seconds(call, 3, device)
        repeats[name] = max(1, round(SHORTEST / seconds(call, 3, device)))
    return repeats

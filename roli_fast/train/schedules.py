"""How the learning rate moves over a stage: the table of all schedules."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from roli_fast.errors import ArgumentError, check_choice, describe
from roli_fast.registry import Registry

_CLOSE = 1e-9
"""Shares of a stage that differ by less are one: a third of 1173 updates is the 391st."""


class Schedule:
    """Base of all schedules. A subclass is a frozen dataclass: its fields configure it."""

    def check(self, epochs: int) -> None:
        """Raise `ArgumentError` where this schedule does not fit a stage of so many epochs."""

    def share(self, update: int, *, epochs: int, steps: int, warmup: float) -> float:
        """Share of the peak rate at one update.

        Args:
            update: counted from 0 over the whole stage.
            epochs: of the stage.
            steps: updates an epoch.
            warmup: the stage's warm-up in epochs; a fraction is fine.
        """
        raise NotImplementedError


SCHEDULES: Registry[type[Schedule]] = Registry("schedule")


@SCHEDULES.register("cosine")
@dataclass(frozen=True)
class Cosine(Schedule):
    """A linear warm-up, then half a cosine to zero."""

    def share(self, update: int, *, epochs: int, steps: int, warmup: float) -> float:
        """As the base says."""
        return lr_factor(update, total=epochs * steps, warmup=round(warmup * steps))


@SCHEDULES.register("step")
@dataclass(frozen=True)
class Step(Schedule):
    """A linear warm-up, if any, then a constant rate that each milestone multiplies by `factor`.

    The default is that of E-AT's and RAMP's fine-tuning: a tenth each third.

    Args:
        milestones: where the rate changes, ascending: below 1 a share of the stage, from 1 on the
            epochs before it. "70" keeps the rate for 70 epochs.
        factor: what the rate is multiplied by, in (0, 1).
        each: "update", a milestone counts from its very update on; "epoch", from the next epoch's
            beginning on.
    """

    milestones: tuple[float, ...] = (1 / 3, 2 / 3)
    factor: float = 0.1
    each: Literal["update", "epoch"] = "update"

    def __post_init__(self) -> None:
        check_choice("schedule.each", self.each, get_args(Literal["update", "epoch"]))
        if not 0 < self.factor < 1:
            raise ArgumentError(describe("schedule.factor", "a number in (0, 1)", self.factor))
        if not self.milestones or not all(0 < m < math.inf for m in self.milestones):
            expected = "one or more numbers > 0"
            fix = "Below 1 they are shares of the stage, from 1 on epochs."
            raise ArgumentError(describe("schedule.milestones", expected, self.milestones, fix))
        if any(a >= b for a, b in zip(self.milestones, self.milestones[1:], strict=False)):
            expected = "ascending numbers"
            raise ArgumentError(describe("schedule.milestones", expected, self.milestones))

    def check(self, epochs: int) -> None:
        """As the base says: a milestone that is never reached is a slip."""
        late = [m for m in self.milestones if m >= epochs and m >= 1]
        if late:
            expected = f"shares below 1, or epochs below those of the stage ({epochs})"
            fix = "0.5 is the middle of a stage of any length."
            raise ArgumentError(describe("schedule.milestones", expected, late[0], fix))

    def share(self, update: int, *, epochs: int, steps: int, warmup: float) -> float:
        """As the base says."""
        rising = round(warmup * steps)
        at = update - update % steps if self.each == "epoch" else update
        passed = 0
        for milestone in self.milestones:
            done = at / steps / (epochs if milestone < 1 else 1)
            passed += done + _CLOSE >= milestone
        return self.factor**passed * ((update + 1) / rising if update < rising else 1.0)


@SCHEDULES.register("triangle")
@dataclass(frozen=True)
class Triangle(Schedule):
    """Linear from zero to the peak, then linear to zero, update by update.

    No update is at zero: the first is one update above it, and so is the last. The stage's
    warmup_epochs play no part, for it rises by itself.

    Args:
        peak: share of the stage at which the rate is highest, in (0, 1).
    """

    peak: float = 0.4

    def __post_init__(self) -> None:
        if not 0 < self.peak < 1:
            raise ArgumentError(describe("schedule.peak", "a number in (0, 1)", self.peak))

    def share(self, update: int, *, epochs: int, steps: int, warmup: float) -> float:
        """As the base says."""
        total = epochs * steps
        rising = max(1, round(self.peak * total))
        if update < rising:
            return (update + 1) / rising
        return (total - update) / max(1, total - rising)


def lr_factor(step: int, *, total: int, warmup: int) -> float:
    """Share of the peak rate at `step` of `total`: linear warm-up, then half a cosine to zero.

    The first step is at 1 / warmup, never at zero.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

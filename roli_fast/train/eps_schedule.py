"""How the radius of a stage's attack moves over its epochs.

Epsilon-Scheduling (ICLR 2026, arXiv:2509.23325): fine-tuning a standard backbone at the full radius
from the first update often fails, and does not where the radius is 0 at first and then rises. It
moves once an epoch, as the paper counts it: 12 of 50 epochs without an attack.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from roli_fast.attacks.base import check_steps, check_within
from roli_fast.errors import ArgumentError, describe
from roli_fast.registry import Registry

_CLOSE = 1e-9
"""Epochs that differ by less are one: 8/44 of 44 epochs are 8."""


class EpsSchedule:
    """Base of all. A subclass is a frozen dataclass: its fields configure it."""

    follows_accuracy: ClassVar[bool] = False
    """Whether `share` asks for the accuracies of the epochs without an attack."""

    def share(self, epoch: int, *, epochs: int, accuracies: Sequence[float] = ()) -> float:
        """The radius of an epoch, as a share of the attack's own: 0 makes no attack.

        Args:
            epoch: counted from 0.
            epochs: of the stage.
            accuracies: clean validation accuracy after each of the first epochs, those without an
                attack, so far.
        """
        raise NotImplementedError

    def switches(self, epochs: int) -> bool:
        """Whether a stage goes from clean images to the full radius between two epochs."""
        shares = [self.share(epoch, epochs=epochs) for epoch in range(epochs)]
        return (0, 1) in pairwise(shares)


EPS_SCHEDULES: Registry[type[EpsSchedule]] = Registry("eps_schedule")


@EPS_SCHEDULES.register("constant")
@dataclass(frozen=True)
class Constant(EpsSchedule):
    """The full radius from the first update on."""

    def share(self, epoch: int, *, epochs: int, accuracies: Sequence[float] = ()) -> float:
        return 1.0


@EPS_SCHEDULES.register("ramp")
@dataclass(frozen=True)
class Ramp(EpsSchedule):
    """No attack at first, then a radius that rises by as much each epoch, then the full one.

    With T1 = start x epochs and T2 = end x epochs, epoch t, counted from 1, has the share
    (t - T1) / (T2 - T1) of the radius, within [0, 1]. Where start and end are equal the clean
    epochs are followed by the full radius at once.

    Args:
        start: part of the stage that trains on clean images, in [0, 1]; 12/50 in the paper.
        end: part of the stage after which the radius is the full one, in [start, 1]; 37/50 in the
            paper.
    """

    start: float = 12 / 50
    end: float = 37 / 50

    def __post_init__(self) -> None:
        check_within(0, 1, "start", self.start)
        if not self.start <= self.end <= 1:
            fix = "Both are parts of the stage: 12/50 and 37/50 of 50 epochs are epochs 12 and 37."
            expected = f"a number in [start, 1], start being {self.start:g}"
            raise ArgumentError(describe("end", expected, self.end, fix))

    def share(self, epoch: int, *, epochs: int, accuracies: Sequence[float] = ()) -> float:
        return _risen(epoch + 1 - self.start * epochs, (self.end - self.start) * epochs)


@EPS_SCHEDULES.register("auto")
@dataclass(frozen=True)
class Auto(EpsSchedule):
    """A ramp that begins as soon as clean validation accuracy stalls: in `patience` epochs it was
    not more than `tolerance` above the best before them.

    It begins at the latest where its rise can just be finished within the stage. In the paper it
    ends 2 to 7 points of robustness below the ramp.

    Args:
        patience: epochs.
        tolerance: a share of all images, 0.02 for two points.
        rise: length of the rise, as a part of the stage, in [0, 1]; 25/50 as the paper's ramp.
    """

    patience: int = 5
    tolerance: float = 0.02
    rise: float = 25 / 50

    follows_accuracy = True

    def __post_init__(self) -> None:
        check_steps("patience", self.patience)
        for name in ("tolerance", "rise"):
            check_within(0, 1, name, getattr(self, name))

    def stalls(self, accuracies: Sequence[float]) -> bool:
        """Whether the last `patience` of these epochs brought too little."""
        best, since = -1.0, 0
        for accuracy in accuracies:
            better = accuracy > best + self.tolerance
            best, since = (accuracy, 0) if better else (best, since + 1)
        return since >= self.patience

    def share(self, epoch: int, *, epochs: int, accuracies: Sequence[float] = ()) -> float:
        start = (1 - self.rise) * epochs
        if self.stalls(accuracies):
            start = min(start, len(accuracies))
        return _risen(epoch + 1 - start, self.rise * epochs)


def _risen(passed: float, length: float) -> float:
    """The part of a rise of so many epochs that has passed; one of none is over at once."""
    if passed < _CLOSE:
        return 0.0
    return 1.0 if passed > length - _CLOSE else passed / length

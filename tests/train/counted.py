"""An objective that counts, draws and is settled, and writes down what it is told."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from several import train

from roli_fast.attacks import Attack
from roli_fast.errors import ArgumentError
from roli_fast.losses import cross_entropy
from roli_fast.train.objectives import OBJECTIVES, Objective, Step, Terms

TOLD: list[tuple[tuple[float, ...], float]] = []
"""The counts and the number drawn, of every part of an update."""

SETTLED: list[dict[str, float]] = []
"""The accuracies of every `settled`."""


@dataclass(frozen=True)
class Counting(Objective):
    """Clean cross-entropy times a factor that is drawn; counts the images and the labels' sum.

    Args:
        refuses: whether it refuses every attack.
        worst: norm of the lowest accuracy; "" wants to be settled on it.
    """

    refuses: bool = False
    worst: str = "unasked"

    @property
    def counters(self) -> int:
        return 2

    @property
    def needs_accuracies(self) -> bool:
        return not self.worst

    def settled(self, accuracies: Mapping[str, float]) -> Objective:
        SETTLED.append(dict(accuracies))
        return replace(self, worst=min(accuracies, key=lambda norm: accuracies[norm]))

    def check(self, attack: Attack | None) -> None:
        if self.refuses:
            raise ArgumentError(f"`attack`: expected no attack, got {attack}.")

    def __call__(self, step: Step) -> Terms:
        assert self.worst, "not settled"
        TOLD.append((tuple(step.counts.tolist()), step.draw))
        y = step.batch.y
        logits = step.model(step.engine.to_memory_format(step.batch.x))
        loss = cross_entropy(logits, y).mean() * (0.5 + step.draw)
        counts = torch.stack([torch.ones_like(y).sum(), y.sum()]).double()
        return Terms(loss, logits.detach(), counts)


def counted(folder: Path, *more: str) -> Any:
    """`several.train` in a process of its own: its exit status, and what the objective was told."""
    OBJECTIVES.register("counting")(Counting)
    return train(folder, *more), TOLD

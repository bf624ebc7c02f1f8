"""Objectives that draw, count and are settled, and write down what they are told."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from several import struck, train
from torch import Generator, Tensor

from roli_fast.attacks import Attack
from roli_fast.errors import ArgumentError
from roli_fast.losses import cross_entropy
from roli_fast.train.objectives import OBJECTIVES, Objective, Step, Terms

TOLD: list[tuple[list[float], float]] = []
"""Counts and the number drawn, of every `chosen`."""

SETTLED: list[dict[str, float]] = []
"""The accuracies of every `settled`."""


@dataclass(frozen=True)
class Counting(Objective):
    """Clean cross-entropy times a factor that is drawn; counts the images and the labels' sum."""

    draws: ClassVar[bool] = True
    factor: float = 1.0

    @property
    def counters(self) -> int:
        return 2

    def chosen(self, counts: Tensor, generator: Generator) -> Objective:
        drawn = float(torch.rand((), generator=generator, dtype=torch.float64))
        TOLD.append((counts.tolist(), drawn))
        return replace(self, factor=0.5 + drawn)

    def __call__(self, step: Step) -> Terms:
        y = step.batch.y
        logits = step.model(step.engine.to_memory_format(step.batch.x))
        loss = cross_entropy(logits, y).mean() * self.factor
        counts = torch.stack([torch.ones_like(y).sum(), y.sum()]).double()
        return Terms(loss, logits.detach(), counts)


class Quiet(Counting):
    """It counts and does not draw."""

    draws: ClassVar[bool] = False


@dataclass(frozen=True)
class Settling(Counting):
    """It wants to be settled, and refuses to be asked before."""

    worst: str = ""

    @property
    def needs_accuracies(self) -> bool:
        return not self.worst

    def settled(self, accuracies: Mapping[str, float]) -> Objective:
        SETTLED.append(dict(accuracies))
        return replace(self, worst=min(accuracies, key=lambda norm: accuracies[norm]))

    def chosen(self, counts: Tensor, generator: Generator) -> Objective:
        assert self.worst, "not settled"
        return super().chosen(counts, generator)


class Refusing(Counting):
    """It cannot use any attack."""

    def check(self, attack: Attack | None) -> None:
        raise ArgumentError(f"`attack`: expected no attack, got {attack}.")


KINDS: dict[str, type[Objective]] = {
    "counting": Counting,
    "quiet": Quiet,
    "settling": Settling,
    "refusing": Refusing,
}


def known() -> None:
    """Register them, in a process of their own."""
    for name, kind in KINDS.items():
        if name not in OBJECTIVES:
            OBJECTIVES.register(name)(kind)


def counted(folder: Path, *more: str) -> int:
    """`several.train`; each process writes what it was told beside `folder`."""
    known()
    status = train(folder, *more)
    _write(folder)
    return status


def counted_and_struck(rank: int, after: int, folder: Path, *more: str) -> int:
    """The same, and process `rank` is sent SIGTERM at the update `after`."""
    known()
    status = struck("SIGTERM", rank, after, folder, *more)
    _write(folder)
    return status


def _write(folder: Path) -> None:
    import os

    path = folder.parent / f"told-{os.environ['RANK']}.json"
    told: list[Any] = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps([*told, *TOLD]))

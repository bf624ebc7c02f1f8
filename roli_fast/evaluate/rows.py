"""What is measured of every chunk of images, a row of flags each: searches, curves, corruptions."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from roli_fast.attacks import Attack
from roli_fast.attacks.base import BallAttack
from roli_fast.data import Batch, ImageDataset
from roli_fast.data.corruptions import SEVERITIES, corrupted
from roli_fast.engine import Cost, SearchModel
from roli_fast.evaluate.accuracy import attacked, right_flags
from roli_fast.evaluate.assessment import Assessment
from roli_fast.evaluate.curve import robustness_curve
from roli_fast.evaluate.store import Chunk, Found
from roli_fast.seeds import derived_generator
from roli_fast.threat import ThreatModel

CURVE, SHIFT = "curve", "shift"
"""First words of the groups of curves and of corruptions."""


@dataclass(frozen=True)
class Seen:
    """A chunk at hand.

    Args:
        chunk: what is known of it by the rows before.
        rows: its images' places in the order of the evaluation.
        batch: the images, on the model's device.
        images: norm -> adversarial images so far, into which those found are written; None where
            they are not kept.
    """

    chunk: Chunk
    rows: range
    batch: Batch
    images: dict[str, Tensor] | None


class Row(Protocol):
    """One measurement of a chunk; it may make several rows of flags at once."""

    @property
    def names(self) -> list[tuple[str, str]]:
        """(group, part) of each row of flags."""
        ...

    def measure(self, model: SearchModel, seen: Seen) -> list[Found]:
        """The rows of flags, as many as `names`; of the model, its own precision counts."""
        ...


@dataclass(frozen=True)
class Search:
    """An attack on what the searches before it in its group left right.

    Args:
        threat: its ball.
        attack: in this ball.
        label: differs from that of all others in the group.
        group: a norm, or "unseen ...".
        over: the group whose survivors are attacked; None takes what survived every norm.
        seed: of the draws, with group, label and a sample's id.
    """

    threat: ThreatModel
    attack: Attack
    label: str
    group: str
    over: str | None
    seed: int

    @property
    def names(self) -> list[tuple[str, str]]:
        """One row."""
        return [(self.group, self.label)]

    def measure(self, model: SearchModel, seen: Seen) -> list[Found]:
        """Of the search; what it finds is written into `seen.images`."""
        began, alive, device = time.perf_counter(), seen.chunk.alive(self.over), seen.batch.x.device
        key = (self.seed, self.group, self.label)
        generator = derived_generator("evaluation", *key, device=device)
        fooled, found = attacked(model, seen.batch, alive.to(device), self.attack, generator)
        row = Found(self.group, self.label, int(alive.sum()), fooled.cpu(), Cost(0, 0))
        if found is None:
            return [row]
        result = found.result
        if seen.images is not None and self.group in seen.images:
            seen.images[self.group][fooled] = result.x_adv[result.fooled]
        row.cost, row.notes, row.lost = result.cost, result.notes, int(found.lost.sum())
        row.seconds = time.perf_counter() - began
        return [row]


@dataclass(frozen=True)
class Radii:
    """A robustness curve: a row for each radius, of what is wrong there or at a smaller one."""

    attack: BallAttack
    radii: tuple[float, ...]
    seed: int

    @property
    def names(self) -> list[tuple[str, str]]:
        """A row a radius."""
        return [(f"{CURVE} {self.attack.label}", f"{radius:.9g}") for radius in self.radii]

    def measure(self, model: SearchModel, seen: Seen) -> list[Found]:
        """The whole cost is the first radius'."""
        curve = robustness_curve(model, [seen.batch], self.attack, self.radii, seed=self.seed)
        costs = [curve.cost, *[Cost(0, 0)] * (len(self.radii) - 1)]
        return [
            Found(*name, len(seen.rows), ~right, cost)
            for name, right, cost in zip(self.names, curve.right[1:], costs, strict=True)
        ]


@dataclass(frozen=True)
class Corruption:
    """The same images under one common corruption: what is classified wrong then."""

    kind: str
    severity: int
    images: ImageDataset
    """All of them, corrupted, in the order of the evaluation."""

    @property
    def names(self) -> list[tuple[str, str]]:
        """One row."""
        return [(f"{SHIFT} {self.kind}", str(self.severity))]

    def measure(self, model: SearchModel, seen: Seen) -> list[Found]:
        """A forward on the corrupted images."""
        x = self.images.batch(torch.tensor(seen.rows)).x.to(seen.batch.x.device)
        right, cost = right_flags(model, seen.batch._replace(x=x))
        return [Found(*self.names[0], len(seen.rows), ~right.cpu(), cost)]


def plan(assessment: Assessment, dataset: ImageDataset) -> list[Row]:
    """Every row, in the order in which a chunk meets them."""
    rows: list[Row] = []
    seed = assessment.seed
    for threat in assessment.threats:
        attacks = [attack.under(threat) for attack in assessment.attacks]
        over = None if assessment.union_only else threat.norm
        rows += _searches(threat.norm, threat, attacks, over, seed)
    for one in assessment.unseen_attacks:
        rows += _searches(one.group, one.threat, [one.attack], one.group, seed)
    rows += [
        Corruption(kind, severity, corrupted(dataset, kind, severity, seed=seed))
        for kind in assessment.corruptions
        for severity in SEVERITIES
    ]
    curve = assessment.curve
    return rows + [Radii(attack, curve, seed) for attack in assessment.curve_attacks]


def _searches(
    group: str, threat: ThreatModel, attacks: Sequence[Attack], over: str | None, seed: int
) -> Iterator[Search]:
    seen: dict[str, int] = {}
    for part in (part for attack in attacks for part in attack.parts):
        count = seen[part.label] = seen.get(part.label, 0) + 1
        label = part.label if count == 1 else f"{part.label}#{count}"
        yield Search(threat, part, label, group, over, seed)

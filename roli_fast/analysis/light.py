"""The light analysis: what a stage of training did to head and features, and how far the final
model's confidence can be trusted. Model, images and attack in, trees for a JSON file out.

Two passes over images for each model and split, one of them under attack; everything else is
arithmetic on the features and logits (N, D) and (N, C) that these give.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from roli_fast.analysis import calibration
from roli_fast.analysis.features import (
    Drift,
    HeadNorms,
    RobustDrift,
    class_separation,
    feature_drift,
    head_norms,
    pairwise_cosine,
    residual_size,
    robust_drift,
)
from roli_fast.analysis.view import Gathered, LinearHead, gather
from roli_fast.attacks import Attack
from roli_fast.data import Batch

Images = Callable[[], Iterable[Batch]]
"""Gives the images of a split anew at each call: fixed views, in one order."""


@dataclass(frozen=True, eq=False)
class Look:
    """One split as one model sees it: its clean images, and those attacked at that model; None
    where attacked ones are not looked at."""

    clean: Gathered
    adversarial: Gathered | None

    def rows(self, places: Sequence[int]) -> "Look":
        """Those of the images at `places`."""
        attacked = self.adversarial
        return Look(self.clean.rows(places), attacked and attacked.rows(places))

    def both(self, measure: Callable[[Gathered], float]) -> dict[str, float | None]:
        """A number of the clean images and one of the attacked ones."""
        parts = {"clean": self.clean, "adversarial": self.adversarial}
        return {name: None if own is None else number(measure(own)) for name, own in parts.items()}


@dataclass(frozen=True, eq=False)
class Point:
    """One model: its head, and training and validation images as it sees them."""

    head: HeadNorms
    train: Look
    validation: Look

    def as_json(self) -> dict[str, Any]:
        """Head norms, residuals on training images, and the features of validation images."""
        validation, moved = self.validation, RobustDrift(math.nan, math.nan)
        if validation.adversarial:
            moved = robust_drift(validation.clean.features, validation.adversarial.features)
        head = {"norm": self.head.norm, "rows": self.head.rows.tolist(), "bias": self.head.bias}
        return {
            "head": head,
            "residual": self.train.both(lambda g: residual_size(g.logits, g.y).mean().item()),
            "separation": validation.both(lambda g: class_separation(g.features, g.y)),
            "pairwise_cosine": validation.both(lambda g: pairwise_cosine(g.features)),
            "robust_drift": numbers(asdict(moved)),
        }


@dataclass(frozen=True)
class Survey:
    """The same images and the same attack for every model that is looked at.

    Args:
        attack: under the threat already; its draws depend on `seed` and the sample's id. None looks
            at clean images alone.
        train: training images, for residuals.
        validation: held-out images, for features.
        seed: of the attack's draws.
        after_batch: called with the number of images done; a progress bar, or a stop.
    """

    attack: Attack | None
    train: Images
    validation: Images
    seed: int = 0
    after_batch: Callable[[int], None] | None = None

    def look(self, model: nn.Module, images: Images, *, keep: bool = False) -> Look:
        """A split as the model sees it; `keep` keeps the images as well."""
        return Look(self.clean(model, images, keep), self.attacked(model, images, keep))

    def clean(self, model: nn.Module, images: Images, keep: bool = False) -> Gathered:
        """Features and logits of clean images."""
        return gather(model, images(), keep_images=keep, after_batch=self.after_batch)

    def attacked(self, model: nn.Module, images: Images, keep: bool = False) -> Gathered | None:
        """Features and logits of images attacked at this model."""
        if self.attack is None:
            return None
        options: dict[str, Any] = {"keep_images": keep, "after_batch": self.after_batch}
        return gather(model, images(), self.attack, seed=self.seed, **options)

    def point(self, model: nn.Module, like: Point | None = None) -> Point:
        """Look at a model.

        Args:
            model: with a linear head, in any mode; given back as found.
            like: a point that may be the same function, the end of the stage before say: where all
                clean features and logits agree bit for bit, its attacked images are taken.
        """
        head = head_norms(LinearHead.of(model).layer)
        train, validation = self.clean(model, self.train), self.clean(model, self.validation)
        if like and _same(like.train.clean, train) and _same(like.validation.clean, validation):
            return replace(like, head=head)
        return Point(
            head,
            Look(train, self.attacked(model, self.train)),
            Look(validation, self.attacked(model, self.validation, keep=True)),
        )

    def change(self, start: Point, model: nn.Module, end: Point) -> dict[str, Any]:
        """How far the features of validation images went from `start` to `end`, which is `model`:
        of clean images, and of those attacked at the start, held fixed."""
        before, after = start.validation, end.validation
        clean = feature_drift(before.clean.features, after.clean.features)
        adversarial = Drift(*4 * [math.nan])
        if before.adversarial:
            held = gather(model, self._held(before.adversarial), after_batch=self.after_batch)
            adversarial = feature_drift(before.adversarial.features, held.features)
        drifts = {"clean": clean, "adversarial": adversarial}
        return {name: numbers(asdict(drift)) for name, drift in drifts.items()}

    def _held(self, found: Gathered) -> Iterator[Batch]:
        """The images attacked at the start, in batches as they were attacked."""
        place = 0
        assert found.x is not None, "a point keeps the attacked validation images"
        for batch in self.validation():
            rows = slice(place, place := place + len(batch.y))
            yield Batch(found.x[rows].to(batch.x.device), batch.y, batch.ids)


def calibrate(validation: Look, test: Look) -> dict[str, Any]:
    """`calibration.report` of one model's validation and test images."""
    looks = (validation.clean, validation.adversarial, test.clean, test.adversarial)
    return calibration.report(*((own.logits, own.y) for own in looks if own is not None))


def _same(a: Gathered, b: Gathered) -> bool:
    """Whether features and logits agree in every bit."""
    return torch.equal(a.features, b.features) and torch.equal(a.logits, b.logits)


def number(value: float) -> float | None:
    """JSON has no NaN and no infinity: null."""
    return value if math.isfinite(value) else None


def numbers(tree: dict[str, float]) -> dict[str, float | None]:
    """`number` of each."""
    return {name: number(value) for name, value in tree.items()}

"""What an attack maximises: the table of losses, one search's goal for each of its samples, and the
wrong class that a targeted one aims at."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Generator, Tensor

from roli_fast import ops
from roli_fast.engine.input_gradient import check_labels
from roli_fast.errors import ArgumentError, describe
from roli_fast.losses import cross_entropy, dlr, dlr_targeted, kl, margin
from roli_fast.registry import Registry

Criterion = Callable[[Tensor, Tensor], Tensor]
"""(logits (B, C), y (B,)) -> one loss a sample (B,), or the batch's mean."""


@dataclass(frozen=True)
class AttackLoss:
    """A per-sample loss in its two forms; an attack maximises either.

    Args:
        away: (logits (B, C), y (B,)) -> (B,), high where a sample is far from its label; with
            `from_clean` it takes the clean logits (B, C) in place of y.
        towards: (logits, y, target (B,)) -> (B,), high where a sample is near its target; None
            where the loss has no such form.
        from_clean: see `away`.
        fewest_classes: number of classes below which the loss is not defined.
        otherwise: name of the loss that takes its place there.
    """

    away: Callable[[Tensor, Tensor], Tensor]
    towards: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    from_clean: bool = False
    fewest_classes: int = 1
    otherwise: str = ""


LOSSES: Registry[AttackLoss] = Registry("loss")


LOSSES.register("ce")(AttackLoss(cross_entropy, lambda z, _y, goal: -cross_entropy(z, goal)))
LOSSES.register("margin")(AttackLoss(margin, lambda z, _y, goal: -margin(z, goal)))
LOSSES.register("dlr")(AttackLoss(dlr, dlr_targeted, fewest_classes=4, otherwise="margin"))
LOSSES.register("kl")(AttackLoss(kl, from_clean=True))


def entry_of(loss: str | Criterion) -> AttackLoss:
    """The forms of a loss by its name, or of a caller's own, which is lowered towards a target."""
    if not callable(loss):
        return LOSSES[loss]
    own = partial(_each, loss)
    return AttackLoss(own, lambda z, _y, goal: -own(z, goal))


def _each(criterion: Criterion, logits: Tensor, y: Tensor) -> Tensor:
    """One loss a sample; a criterion that returns the batch's mean is called image by image."""
    losses = criterion(logits, y)
    if losses.ndim == 0 and len(y):
        rows = zip(logits.split(1), y.split(1), strict=True)
        return torch.stack([criterion(*row) for row in rows])
    if losses.ndim == 0:  # the mean of nothing
        return logits.sum(1)
    return losses


def name_of(loss: str | Criterion) -> str:
    """What tables call a loss."""
    return loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)


def defined_for(loss: str | Criterion, classes: int) -> str | Criterion:
    """The loss that is taken with so many classes: `loss`, or what stands in for it."""
    entry = entry_of(loss)
    return loss if classes >= entry.fewest_classes else entry.otherwise


def notes_on(loss: str | Criterion, classes: int) -> tuple[str, ...]:
    """What a result says about a loss that was not defined for the model's number of classes, 0
    where no image was shown to it."""
    taken = defined_for(loss, classes)
    if taken == loss or classes == 0:
        return ()
    fewest = entry_of(loss).fewest_classes
    return (f"loss {loss} needs {fewest} classes, the model has {classes}: {taken} was taken",)


def is_right(logits: Tensor, y: Tensor) -> Tensor:
    """Which samples (B,) are classified as `y`. A NaN among the logits is never right.

    argmax takes a NaN for the maximum, so a model that breaks down would be right for class 0.
    """
    return (logits.argmax(1) == y) & ~logits.isnan().any(1)


@dataclass(frozen=True)
class Goal:
    """What one search wants of each sample: away from `y`, or towards `target` where it is given.

    It is the loss of an engine call. All tensors have the batch in front.

    Args:
        loss: a name in `LOSSES`, or a caller's own.
        y: labels (B,).
        target: labels (B,) to be reached.
        clean: logits (B, C) of the clean images, for losses that compare with them.
        any_class: a sample counts as fooled by any wrong class, also where a target is given.
    """

    loss: str | Criterion
    y: Tensor
    target: Tensor | None = None
    clean: Tensor | None = None
    any_class: bool = False

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        entry = entry_of(defined_for(self.loss, logits.shape[1]))
        if self.target is None:
            other = self.clean if entry.from_clean and self.clean is not None else y
            return entry.away(logits, other)
        assert entry.towards is not None
        return entry.towards(logits, y, self.target)

    def rows(self, part: slice) -> "Goal":
        """The goal of these samples alone."""
        own = {"y": self.y, "target": self.target, "clean": self.clean}
        some = {name: value[part] for name, value in own.items() if value is not None}
        return replace(self, **some)  # pyright: ignore[reportArgumentType]

    def reached(self, logits: Tensor) -> Tensor:
        """Which samples (B,) are fooled: not `y`, or exactly `target` where that is the aim."""
        if self.target is None or self.any_class:
            return ~is_right(logits, self.y)
        return is_right(logits, self.target)


def check_loss(loss: str | Criterion, *, targeted: bool = False) -> None:
    """Raise unless `loss` is a loss or names one, with a targeted form where one is needed."""
    if entry_of(loss).towards is None and targeted:
        known = ", ".join(name for name in LOSSES if LOSSES[name].towards)
        raise ArgumentError(
            describe("loss", f"a loss with a targeted form, one of: {known}", repr(loss))
        )


def check_target(target: Tensor, y: Tensor, logits: Tensor) -> None:
    """Raise unless `target` is a class (B,) of the model, and no sample's own label. One sync."""
    check_labels(target, logits, "target")
    if bool((target == y).any()):
        place = int(torch.nonzero(target == y)[0])
        raise ArgumentError(
            describe("target", "other classes than `y`", f"the label itself for sample {place}")
        )


RULES = ("least_likely", "random")
"""How `choose` aims."""


def choose(rule: str, clean: Tensor, y: Tensor, generator: Generator | None, ids: Tensor) -> Tensor:
    """One target class a sample, (B,).

    Args:
        rule: "least_likely", the class of lowest clean logit, or "random", any class but `y`.
        clean: logits (B, C) of the clean images.
        y: labels (B,).
        generator: one draw is taken from it by "random"; a sample's class depends on it and on the
            sample's id alone.
        ids: the samples' ids (B,).
    """
    classes = _classes(clean)
    if rule == "least_likely":
        return clean.float().scatter(1, y[:, None], float("inf")).argmin(1)
    zeros = clean.new_zeros(len(y), 1).float()
    uniform = ops.linf_random_start(
        zeros, eps=1.0, bounds=(-1.0, 1.0), generator=generator, sample_ids=ids
    )[:, 0]
    offset = ((uniform + 1) / 2 * (classes - 1)).long().clamp(max=classes - 2)
    return (y + 1 + offset) % classes


def most_likely_others(clean: Tensor, y: Tensor, count: int) -> Tensor:
    """The `count` most likely wrong classes of each sample, (B, count), likeliest first.

    APGD-T and FAB-T attack them one after another; `count` is cut to C - 1.
    """
    wrong = clean.scatter(1, y[:, None], -float("inf"))
    order = wrong.sort(dim=1, descending=True).indices
    return order[:, : min(count, _classes(clean) - 1)]


def _classes(clean: Tensor) -> int:
    classes = clean.shape[1]
    if classes < 2:
        fix = "There is no wrong class to aim at."
        raise ArgumentError(describe("model", "a model with at least 2 classes", classes, fix))
    return classes

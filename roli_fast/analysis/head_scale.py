"""What the size of the head does to an update: V -> s V, b -> s b before it.

At fixed residuals and rate, d phi grows as s and the backbone's part of d f as s^2: features move
less for each unit that logits move (Tomihari & Sato 2024, arXiv:2405.16747, section 4). At the same
rate they move more: what reverses it in practice are smaller residuals and smaller rates.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from roli_fast.analysis.costs import Cost, attack_cost, count_of, say
from roli_fast.analysis.derivatives import moving_names, network
from roli_fast.analysis.descent import Descent, Weigh, attacked, descend
from roli_fast.analysis.one_step import OneStep, predict
from roli_fast.analysis.residual import residual
from roli_fast.analysis.view import LinearHead
from roli_fast.attacks import Attack
from roli_fast.data import Batch
from roli_fast.threat import check_positive

SCALES = (0.1, 1.0, 10.0)


class Moved(NamedTuple):
    """Mean |d phi| over the images, and mean |V d phi|, the backbone's part of the logits'."""

    features: float
    logits_F: float


@dataclass(frozen=True)
class ScaleRow:
    """One scale s.

    Args:
        scale: s.
        features: mean predicted |d phi|, everything computed at this scale.
        logits_F: mean predicted |V d phi|, likewise.
        ft_ratio: likewise; see `OneStep`.
        residual: mean |delta_i| over the training images, likewise.
        fixed: with the residuals, and the attacked images, of scale 1: s and s^2 times those there.
    """

    scale: float
    features: float
    logits_F: float
    ft_ratio: float
    residual: float
    fixed: Moved


def head_scale(  # noqa: PLR0913 - one call, and each option is independent of the others
    model: nn.Module | LinearHead,
    train: Iterable[Batch],
    batches: Iterable[Batch],
    scales: Sequence[float] = SCALES,
    *,
    names: Sequence[str] | None = None,
    lr: float = 1.0,
    attack: Attack | None = None,
    head: str | None = None,
    seed: int = 0,
    after_batch: Callable[[int], None] | None = None,
) -> list[ScaleRow]:
    """The predicted change under one SGD step, for the head times each scale.

    A large scale saturates the softmax: residuals vanish, and so do the gradients of an attack on
    the cross-entropy, which then only seems to fail. Attack by a scale-free loss, DLR say.

    Args:
        model: inputs (B, ...) -> logits (B, C), with a linear head; it is copied.
        train: the images that the update sees; all are kept, attacked, for the time of the call.
        batches: where the change is wanted.
        scales: numbers > 0.
        names: the tensors that train; see `one_step`.
        lr: the rate on the SUM of the losses, the same for all scales.
        attack: for `train`, made anew at every scale but for `ScaleRow.fixed`.
        head: name of the head where it cannot be found.
        seed: of the attack's random start.
        after_batch: called with the number of images done, 2 len(scales) times all of both; a
            progress bar, or a stop.
    """
    for scale in scales:
        check_positive("scales", scale)
    view = LinearHead.of(model, head)
    train, batches = list(train), list(batches)
    counts = count_of(train) or 0, count_of(batches) or 0
    say(head_scale_cost(view, *counts, len(scales), attack))
    moving = moving_names(view, names)
    own = LinearHead.of(copy.deepcopy(view.model), view.name)
    study = _Study(own, moving, batches, lr, after_batch)
    first = list(attacked(own.model, train, attack, seed=seed))
    deltas = study.residuals(first)
    start = [parameter.detach().clone() for parameter in own.layer.parameters()]
    rows: list[ScaleRow] = []
    for scale in scales:
        with torch.no_grad():
            for parameter, value in zip(own.layer.parameters(), start, strict=True):
                parameter.copy_(scale * value)
        fixed, _ = study.step(first, _in_turn(deltas))
        again = list(attacked(own.model, train, attack, seed=seed)) if attack else first
        step, found = study.step(again, lambda batch, logits: residual(logits, batch.y))
        moved = Moved(fixed.size, fixed.backbone_size)
        rows.append(
            ScaleRow(
                scale, step.size, step.backbone_size, step.ft_ratio, found.residual, fixed=moved
            )
        )
    return rows


def head_scale_cost(
    model: nn.Module | LinearHead,
    train_images: int,
    images: int,
    scales: int = len(SCALES),
    attack: Attack | None = None,
) -> Cost:
    """Of each scale two gradients a training image and two JVPs an image; and the attacks."""
    view = LinearHead.of(model)
    size = sum(p.numel() * p.element_size() for p in view.model.parameters())
    cost = Cost(
        "head scale",
        forwards=train_images + 2 * scales * (train_images + images),
        weight_backwards=2 * scales * train_images,
        jvps=2 * scales * images,
        bytes=3 * size,
    )
    if attack is None:
        return cost
    return cost + attack_cost(attack, (scales + 1) * train_images, classes=view.classes)


@dataclass(frozen=True)
class _Study:
    view: LinearHead
    names: list[str]
    batches: list[Batch]
    lr: float
    after_batch: Callable[[int], None] | None

    def step(self, train: list[Batch], weigh: Weigh) -> tuple[OneStep, Descent]:
        with network(self.view, self.names) as net:
            found = descend(net, self._counted(train), weigh)
            update = {name: self.lr * value for name, value in found.tangent.items()}
            return predict(
                net, update, self._counted(self.batches), lr=self.lr, descent=found
            ), found

    def _counted(self, batches: list[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield batch
            if self.after_batch:
                self.after_batch(len(batch.y))

    def residuals(self, train: list[Batch]) -> list[Tensor]:
        """delta of each batch, at the present head."""
        with network(self.view, []) as net, torch.no_grad():
            return [residual(net(batch.x)[1], batch.y) for batch in train]


def _in_turn(deltas: list[Tensor]) -> Weigh:
    """Gives the residuals of the batches as they come."""
    left = iter(deltas)
    return lambda batch, logits: next(left)

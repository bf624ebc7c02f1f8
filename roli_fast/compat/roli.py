"""RoLI's attack under its own name and arguments (`src/adv_func.py` of its release)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from roli_fast.attacks import PGD
from roli_fast.attacks.objective import Goal
from roli_fast.engine.input_gradient import Model
from roli_fast.errors import ArgumentError, describe

Criterion = Callable[[Tensor, Tensor, Any], Tensor]
"""(logits (B, C), target (B,), class weights) -> one loss a sample (B,), or the batch's mean."""


def adv_generator(  # noqa: PLR0913 - RoLI's arguments
    images: Tensor,
    target: Tensor,
    model: Model,
    eps: float,
    attack_steps: int,
    attack_lr: float,
    random_start: bool,
    attack_criterion: Criterion | None = None,
    cls_weights: Sequence[float] | None = None,
    use_best: bool = True,
    *,
    generator: Generator | None = None,
) -> Tensor:
    """PGD in linf on images in [0, 1], as RoLI calls it: returns adversarial images.

    What differs: the best iterate is each image's own (the release compares means over the batch
    where its criterion returns one; `--paper_compat batch_best` trains with that), no weight
    gradients are computed, and modes, gradients and statistics are given back, after an exception
    too. Images outside [0, 1] and wrong labels are refused.

    Args:
        images: images (B, ...) in [0, 1].
        target: labels (B,), int64; despite its name what the attack goes away from.
        model: images -> logits (B, C), its normalisation inside.
        eps: radius.
        attack_steps: gradient steps.
        attack_lr: length of a step.
        random_start: begin at a random point of the ball.
        attack_criterion: None for cross-entropy, or a callable (logits, target, cls_weights). One
            that returns the batch's mean is called image by image.
        cls_weights: handed to the criterion. Without one they must be positive and then have no
            effect: a weight changes neither the sign of an image's gradient nor its best iterate.
        use_best: return the iterate of highest loss (one more forward), not the last.
        generator: source of the random start; None takes torch's global generator.
    """
    if attack_criterion is not None and not callable(attack_criterion):
        got = repr(attack_criterion)
        raise ArgumentError(describe("attack_criterion", "None or a callable", got))
    if attack_criterion is None and cls_weights is not None:
        if not all(float(weight) > 0 for weight in cls_weights):
            raise ArgumentError(describe("cls_weights", "weights > 0", cls_weights))
    attack = _CriterionPGD(
        eps=eps,
        step_size=attack_lr,
        steps=attack_steps,
        random_start=bool(random_start),
        keep="best" if use_best else "last",
        criterion=attack_criterion,
        weights=cls_weights,
    )
    return attack(model, images, target, generator)


@dataclass(frozen=True, eq=False)
class _CriterionPGD(PGD):
    """PGD on a loss of the caller's."""

    criterion: Criterion | None = None
    weights: Any = None

    def _goal(self, *given: Any, **named: Any) -> Goal:
        goal = super()._goal(*given, **named)
        if self.criterion is None:
            return goal
        criterion, weights = self.criterion, self.weights
        return _CriterionGoal(
            goal.loss, goal.y, criterion=lambda logits, y: criterion(logits, y, weights)
        )


@dataclass(frozen=True)
class _CriterionGoal(Goal):
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        assert self.criterion is not None
        losses = self.criterion(logits, y)
        if losses.shape == y.shape:
            return losses
        if losses.numel() != 1:
            expected = f"({len(y)},) or one number"
            got = tuple(losses.shape)
            raise ArgumentError(describe("attack_criterion", f"a loss of shape {expected}", got))
        if len(y) == 0:
            return logits.sum(1)
        rows = zip(logits.split(1), y.split(1), strict=True)
        return torch.stack([self.criterion(*row).reshape(()) for row in rows])

"""RoLI's attack under its own name and arguments (`src/adv_func.py` of its release)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from roli_fast.attacks import PGD
from roli_fast.attacks.base import Ball
from roli_fast.attacks.passes import Samples
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
        generator: source of the random start, drawn for the whole batch at once as in the release;
            None takes torch's global generator.
    """
    given, weights = attack_criterion, () if cls_weights is None else tuple(cls_weights)
    if given is None and not all(weight > 0 for weight in weights):
        raise ArgumentError(describe("cls_weights", "weights > 0", cls_weights))
    attack = _ReleasesPGD(
        eps=eps,
        step_size=attack_lr,
        steps=attack_steps,
        random_start=bool(random_start),
        keep="best" if use_best else "last",
        loss="ce" if given is None else lambda logits, y: given(logits, y, cls_weights),
    )
    return attack(model, images, target, generator)


@dataclass(frozen=True)
class _ReleasesPGD(PGD):
    """PGD from the release's random start."""

    def _start(self, samples: Samples, ball: Ball, generator: Generator | None) -> Tensor:
        x = samples.x
        if not self.random_start:
            return x.clone()
        draws = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        start = x + 2 * (draws - 0.5) * samples.eps
        still = torch.zeros_like(x)  # a step of no length rounds into ball and box
        ball.norm.step_(start, still, x, eps=samples.eps, step_size=1.0, bounds=ball.bounds)
        return start

"""Whether single steps still find what they look for: how well the gradient at an attack's start
foretells the one at the perturbed image, and when a run must not go on as it does.

PertAlign: the mean over the batch of the cosine between the two (SORA, ICML 2026,
arXiv:2606.00738). The second is by the training step's own backward, for which the perturbed image
asks for a gradient; where the head trains alone, that would be a pass through the backbone, made in
one update of `EVERY` only.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from roli_fast.attacks import PGD, SORA, Attack, SingleStep

OnCollapse = Literal["steps", "stop", "ignore"]
"""What follows an alarm."""

EVERY = 50
"""Updates of a head for which the alignment is measured once, at one pass of a hundred and more."""

FALLEN = 0.7
"""Share of the highest alignment of an epoch below which single steps no longer count. Runs that
keep their accuracy stay above 0.9 (twenty on digits) and 0.99 (from a robust backbone); one that
loses it falls below this with half of it left (benchmarks/NOTES.md)."""

USUAL = 0.4
"""The alignment from which on a fall says something: batch normalisation in training mode, seen by
an attack in eval mode, can keep it near 0 all along."""

MOST_STEPS = 8
"""Of the attack after alarms: each doubles them."""


@dataclass
class Alignment:
    """The two gradients of one part of a batch, as they come."""

    start_grad: Tensor | None = None
    x_adv: Tensor | None = None

    def watched(self, x_adv: Tensor, start_grad: Tensor | None) -> Tensor:
        """The images to train on, which from now on ask for their gradient, if `start_grad`, that
        at the start of a single step, is there to compare it with."""
        if start_grad is None:
            return x_adv
        self.start_grad, self.x_adv = start_grad, x_adv.requires_grad_(True)
        return self.x_adv

    def row(self, like: Tensor, scale: float) -> Tensor:
        """(3,) after the backward: the sum over samples of the cosine, of SORA's measure
        sum(sign(g) g') / sum|g|, and how many they are, those with a gradient at both ends.

        Args:
            like: a scalar of the type and device of the result.
            scale: what the backward's loss, a mean, has to be multiplied by to be the samples' sum.
        """
        end = None if self.x_adv is None else self.x_adv.grad
        if self.start_grad is None or end is None:
            return like.new_zeros(3)
        a, b = self.start_grad.flatten(1).float(), end.flatten(1).float() * scale
        lengths = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
        there = lengths > 0
        cosine = torch.where(there, (a * b).sum(1) / lengths, 0)
        sora = torch.where(there, (a.sign() * b).sum(1) / a.abs().sum(1), 0)
        return torch.stack([cosine, sora, there.float()]).to(like.dtype).sum(1)


def watches(attack: Attack | None, head_alone: bool, step: int) -> bool:
    """Whether an update looks at the alignment: `step` counts those of the epoch."""
    if not isinstance(attack, SingleStep):
        return False
    return not head_alone or step % EVERY == 0 or isinstance(attack, SORA)


def remembered(attack: SORA, row: Tensor) -> float:
    """SORA's moving average after an update, from the `Alignment.row` of all its images."""
    _cosine, new, looked = row.tolist()
    if not looked:
        return attack.alignment
    return (1 - attack.memory) * attack.alignment + attack.memory * max(-1, min(1, new / looked))


def alignment_alarm(alignment: float, highest: float) -> str:
    """What is wrong with an epoch's alignment, given the highest so far; "" for nothing."""
    if highest < USUAL or alignment >= FALLEN * highest:
        return ""
    return f"the alignment fell to {alignment:.2f}, from up to {highest:.2f}"


def score_alarm(score: float, best: float, images: int) -> str:
    """What is wrong with a validation accuracy of so many images, below half of the best one and by
    more than three standard errors; "" for nothing."""
    noise = 3 * math.sqrt(2 * best * (1 - best) / images) if best > 0 else 1.0
    if score >= best / 2 or best - score <= noise:
        return ""
    return f"robust accuracy fell to {100 * score:.1f} %, from up to {100 * best:.1f} %"


def with_steps(attack: SingleStep, steps: int) -> PGD:
    """PGD of `steps` steps in a single step's place: together 1.75 eps long, RoLI's share."""
    ball: dict[str, Any] = {name: getattr(attack, name) for name in ("norm", "eps", "bounds")}
    size = None if attack.eps is None else 1.75 * attack.eps / steps
    return PGD(**ball, step_size=size, steps=steps, loss=attack.loss)

"""The one-step attacks: a start, one gradient, one step.

FGSM and RS-FGSM end inside the ball of eps. N-FGSM and SORA are for training and leave it: their
images are up to three times eps from the original, within the bounds.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roli_fast.attacks.base import (
    ATTACKS,
    AttackInputs,
    AttackResult,
    Ball,
    BallAttack,
    check_within,
)
from roli_fast.attacks.objective import Criterion, Goal, check_loss, notes_on
from roli_fast.attacks.passes import Passes
from roli_fast.errors import ArgumentError, describe
from roli_fast.norms import NORMS
from roli_fast.ops.rounding import per_sample


@dataclass(frozen=True)
class SingleStep(BallAttack):
    """Base of FGSM, RS-FGSM, N-FGSM and SORA: one forward and one input-backward. The result has
    the gradient at the start, which a training run compares with that at the end.

    Args:
        loss: "ce", "dlr" or "margin", or a callable of (logits, y): what the step ascends.
    """

    loss: str | Criterion = "ce"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss(self.loss)
        if self.loss == "kl":
            raise ArgumentError(describe("loss", "'ce', 'dlr' or 'margin'", "'kl'"))

    @property
    def shares(self) -> tuple[float, float]:
        """Radius of the random start, 0 for the image itself, and length of the step, both in
        multiples of eps."""
        return 0.0, 1.0

    def search(self, inputs: AttackInputs) -> AttackResult:
        ball, inputs = self.ball(inputs)
        x_adv, share = inputs.x.clone(), self.shares[0]
        if share > 0:
            x_adv = ball.norm.random_start(
                inputs.x,
                eps=ball.eps * share,
                bounds=ball.bounds,
                generator=inputs.generator,
                sample_ids=inputs.ids,
            )
        with inputs.gradient() as gradient:
            passes = Passes(gradient)
            grad, _loss, _logits = passes.gradient(x_adv, Goal(self.loss, inputs.y))
            self.step_(x_adv, grad, ball, inputs)
            notes = notes_on(self.loss, passes.classes) + ball.notes
            return AttackResult(x_adv, gradient.cost, notes=notes, start_grad=grad)

    def step_(self, x_adv: Tensor, grad: Tensor, ball: Ball, inputs: AttackInputs) -> None:
        """Move `x_adv`, the start, along its gradient, in place."""
        radii = dict(eps=ball.eps * self.reach, step_size=ball.eps * self.shares[1])
        ball.norm.step_(x_adv, grad, inputs.x, **radii, bounds=ball.bounds)


@ATTACKS.register("fgsm")
@dataclass(frozen=True)
class FGSM(SingleStep):
    """One step of length eps from the image itself; in l2 and l1 along their steepest ascent.

    Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015, section 4.
    """

    @property
    def label(self) -> str:
        return "fgsm"


@ATTACKS.register("rs-fgsm")
@dataclass(frozen=True)
class RSFGSM(SingleStep):
    """One step of `step` eps from a random point of the ball, projected back.

    Wong et al., "Fast is better than free", ICLR 2020, Algorithm 3. The other fields are those of
    `SingleStep`.

    Args:
        step: length of the step in multiples of eps, 1.25 in the paper.
    """

    step: float = 1.25

    @property
    def label(self) -> str:
        return "rs-fgsm"

    @property
    def shares(self) -> tuple[float, float]:
        return 1.0, self.step


@ATTACKS.register("n-fgsm")
@dataclass(frozen=True)
class NFGSM(SingleStep):
    """One step of eps from noise `noise` eps wide, which is not pulled back to the ball of eps.

    For training: its images are up to (1 + noise) eps from the original, so they measure no
    robustness at eps. They are within the bounds. De Jorge et al., "Make Some Noise: Reliable and
    Efficient Single-Step Adversarial Training", NeurIPS 2022, Algorithm 1. The other fields are
    those of `SingleStep`.

    Args:
        noise: radius of the uniform noise in multiples of eps, 2 in the paper.
    """

    noise: float = 2.0

    @property
    def label(self) -> str:
        return "n-fgsm"

    @property
    def reach(self) -> float:
        return 1 + self.noise

    @property
    def shares(self) -> tuple[float, float]:
        return self.noise, 1.0


@ATTACKS.register("sora")
@dataclass(frozen=True)
class SORA(SingleStep):
    """A step of random length, value by value, from a random point of the ball; not pulled back.

    x_adv = clip(x + eta + m u sign(g)), with eta uniform in the ball of eps, u uniform in [0, 1],
    and m = min(1, `width` / (1 - alignment)) 2 eps: steps get shorter as the loss bends. In l2 and
    l1, beyond the paper, m is the length of the norm's own step, and u scales its values. For
    training: its images are up to 3 eps from the original, so they measure no robustness at eps.
    A run keeps `alignment` as a moving average over its updates (`train.alignment`). ICML 2026,
    arXiv:2606.00738. `loss` is that of `SingleStep`.

    Args:
        alignment: how well gradients at the start predict those at the perturbed images, in
            [-1, 1]; a run begins with it.
        width: misalignment 1 - alignment up to which steps keep their full length.
        memory: weight of the newest batch in the moving average.
    """

    alignment: float = 0.99
    width: float = 0.02
    memory: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within(-1, 1, "alignment", self.alignment)
        check_within(0, 1, "memory", self.memory)

    @property
    def label(self) -> str:
        return "sora"

    @property
    def reach(self) -> float:
        return 3.0

    @property
    def shares(self) -> tuple[float, float]:
        left = 1 - self.alignment
        return 1.0, 2.0 * (min(1.0, self.width / left) if left > 0 else 1.0)

    def step_(self, x_adv: Tensor, grad: Tensor, ball: Ball, inputs: AttackInputs) -> None:
        half = torch.full_like(x_adv, 0.5)
        draw: dict[str, Any] = dict(generator=inputs.generator, sample_ids=inputs.ids)
        u = NORMS["linf"].random_start(half, eps=0.5, bounds=(0.0, 1.0), **draw)
        size = ball.eps * self.shares[1]
        whole: dict[str, Any] = dict(eps=ball.eps * self.reach, bounds=ball.bounds)
        if ball.norm is NORMS["linf"]:
            x_adv += u * grad.sign() * per_sample(size, x_adv)
        else:
            end = ball.norm.step_(x_adv.clone(), grad, inputs.x, step_size=size, **whole)
            x_adv += u * (end - x_adv)
        ball.norm.project_(x_adv, inputs.x, **whole)  # the clip; the ball of 3 eps holds it already

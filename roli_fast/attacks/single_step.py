"""The one-step attacks: a start, one gradient, one step."""

from dataclasses import dataclass

from roli_fast.attacks.base import ATTACKS, AttackInputs, AttackResult, BallAttack
from roli_fast.attacks.objective import Criterion, Goal, check_loss, notes_on
from roli_fast.attacks.passes import Passes
from roli_fast.errors import ArgumentError, describe


@dataclass(frozen=True)
class SingleStep(BallAttack):
    """Base of FGSM, RS-FGSM and N-FGSM: one forward and one input-backward.

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
        start, step = self.shares
        x_adv = inputs.x.clone()
        if start > 0:
            x_adv = ball.norm.random_start(
                inputs.x,
                eps=ball.eps * start,
                bounds=ball.bounds,
                generator=inputs.generator,
                sample_ids=inputs.ids,
            )
        with inputs.gradient() as gradient:
            passes = Passes(gradient)
            grad, _loss, _logits = passes.gradient(x_adv, Goal(self.loss, inputs.y))
            radii = dict(eps=ball.eps * self.reach, step_size=ball.eps * step)
            ball.norm.step_(x_adv, grad, inputs.x, **radii, bounds=ball.bounds)
            notes = notes_on(self.loss, passes.classes) + ball.notes
            return AttackResult(x_adv, gradient.cost, notes=notes)


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

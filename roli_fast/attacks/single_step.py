"""What the one-step attacks share: a start, one gradient, one step."""

from dataclasses import dataclass

from torch import Generator, Tensor

from roli_fast.attacks.base import AttackInputs, AttackResult, Ball, BallAttack
from roli_fast.attacks.objective import Goal, check_loss_name, notes_on
from roli_fast.attacks.passes import Passes, Samples
from roli_fast.errors import ArgumentError, describe
from roli_fast.threat import Bounds


@dataclass(frozen=True)
class SingleStep(BallAttack):
    """Base of FGSM, RS-FGSM and N-FGSM: one forward and one input-backward.

    Args:
        norm: "linf", "l2" or "l1"; null in a run's configuration takes the run's threat model.
        eps: radius; null takes the norm's usual one (8/255, 0.5, 12 in [0, 1] images), which the
            result then notes, and in a run that of the run's threat model.
        loss: "ce", "dlr" or "margin", what the step ascends.
        bounds: lowest and highest valid pixel; null takes the run's threat model.
    """

    norm: str | None = "linf"
    eps: float | None = None
    loss: str = "ce"
    bounds: Bounds | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        self.check_ball()
        check_loss_name(self.loss)
        if self.loss == "kl":
            raise ArgumentError(describe("loss", "'ce', 'dlr' or 'margin'", "'kl'"))

    def start(
        self, x: Tensor, ball: Ball, generator: Generator | None, sample_ids: Tensor | None
    ) -> Tensor:
        """A new tensor: the point whose gradient is taken."""
        raise NotImplementedError

    @property
    def step_share(self) -> float:
        """Length of the step in multiples of eps."""
        return 1.0

    def search(self, inputs: AttackInputs) -> AttackResult:
        ball, inputs = self.ball(inputs)
        with inputs.gradient() as gradient:
            x, ids = inputs.x, inputs.ids
            x_adv = self.start(x, ball, inputs.generator, ids)
            samples = Samples(x, Goal(self.loss, inputs.y), ids, ball.eps)
            passes = Passes(gradient)

            def step(x_adv: Tensor, some: Samples) -> Tensor:
                grad, _loss, _logits = passes.gradient(x_adv, some.goal)
                return ball.norm.step_(
                    x_adv,
                    grad,
                    some.x,
                    eps=some.eps * self.reach,
                    step_size=some.eps * self.step_share,
                    bounds=ball.bounds,
                )

            x_adv = passes.loop((self, ball.norm, ball.bounds), x_adv, samples, step)
            notes = notes_on(self.loss, passes.classes) + ball.notes
            return AttackResult(x_adv, gradient.cost, notes=notes)

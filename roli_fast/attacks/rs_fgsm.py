"""FGSM from a random start (Wong et al., "Fast is better than free", ICLR 2020, Algorithm 3)."""

from dataclasses import dataclass

from torch import Generator, Tensor

from roli_fast.attacks.base import ATTACKS, Ball
from roli_fast.attacks.single_step import SingleStep
from roli_fast.threat import check_positive


@ATTACKS.register("rs-fgsm")
@dataclass(frozen=True)
class RSFGSM(SingleStep):
    """One step of `step` eps from a random point of the ball, projected back.

    Args:
        norm: "linf", "l2" or "l1"; null in a run's configuration takes the run's threat model.
        eps: radius; null takes the norm's usual one (8/255, 0.5, 12 in [0, 1] images), which the
            result then notes, and in a run that of the run's threat model.
        loss: "ce", "dlr" or "margin", what the step ascends.
        bounds: lowest and highest valid pixel; null takes the run's threat model.
        step: length of the step in multiples of eps, 1.25 in the paper.
    """

    step: float = 1.25

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("step", self.step)

    @property
    def label(self) -> str:
        """ "rs-fgsm"."""
        return "rs-fgsm"

    @property
    def step_share(self) -> float:
        """`step`."""
        return self.step

    def start(
        self, x: Tensor, ball: Ball, generator: Generator | None, sample_ids: Tensor | None
    ) -> Tensor:
        """Uniform in the ball."""
        return ball.norm.random_start(
            x, eps=ball.eps, bounds=ball.bounds, generator=generator, sample_ids=sample_ids
        )

"""Noise-FGSM (de Jorge et al., "Make Some Noise: Reliable and Efficient Single-Step Adversarial
Training", NeurIPS 2022, Algorithm 1)."""

from dataclasses import dataclass

from torch import Generator, Tensor

from roli_fast.attacks.base import ATTACKS, Ball
from roli_fast.attacks.single_step import SingleStep
from roli_fast.threat import check_positive


@ATTACKS.register("n-fgsm")
@dataclass(frozen=True)
class NFGSM(SingleStep):
    """One step of eps from noise `noise` eps wide, which is not pulled back to the ball of eps.

    For training: its images are up to (1 + noise) eps from the original, so they measure no
    robustness at eps. They are within the bounds.

    Args:
        norm: "linf", "l2" or "l1"; null in a run's configuration takes the run's threat model.
        eps: radius; null takes the norm's usual one (8/255, 0.5, 12 in [0, 1] images), which the
            result then notes, and in a run that of the run's threat model.
        loss: "ce", "dlr" or "margin", what the step ascends.
        bounds: lowest and highest valid pixel; null takes the run's threat model.
        noise: radius of the uniform noise in multiples of eps, 2 in the paper.
    """

    noise: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("noise", self.noise)

    @property
    def label(self) -> str:
        """ "n-fgsm"."""
        return "n-fgsm"

    @property
    def reach(self) -> float:
        """1 + `noise`."""
        return 1 + self.noise

    def start(
        self, x: Tensor, ball: Ball, generator: Generator | None, sample_ids: Tensor | None
    ) -> Tensor:
        """Uniform in the ball of `noise` eps, clipped to the bounds."""
        return ball.norm.random_start(
            x,
            eps=ball.eps * self.noise,
            bounds=ball.bounds,
            generator=generator,
            sample_ids=sample_ids,
        )

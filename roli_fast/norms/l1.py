"""The l1 norm: the sum of all changes of an image is at most eps."""

from dataclasses import dataclass

from torch import Tensor

from roli_fast import ops
from roli_fast.errors import ArgumentError, describe
from roli_fast.norms.base import NORMS, Bounds


@dataclass(frozen=True)
class L1:
    """Sparse steps: the steepest ascent alone would change one entry (Croce & Hein, ICML 2021).

    Args:
        density: which part of an image's entries a step moves, those of largest gradient; 0.05 is
            where APGD starts in training.
    """

    order = 1.0
    usual_eps = 12.0

    density: float = 0.05

    def __post_init__(self) -> None:
        if not 0.0 <= self.density <= 1.0:
            raise ArgumentError(describe("density", "a number in [0, 1]", self.density))

    random_start = staticmethod(ops.l1_random_start)
    """Uniform in the ball, then clipped to the box."""

    def step_(
        self,
        x_adv: Tensor,
        grad: Tensor,
        x: Tensor,
        *,
        eps: float | Tensor,
        step_size: float | Tensor,
        bounds: Bounds,
    ) -> Tensor:
        """One fused sparse step, `step_size` long, and the exact projection on ball and box."""
        return ops.l1_step_(
            x_adv, grad, x, eps=eps, step_size=step_size, density=self.density, bounds=bounds
        )

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Sum of the absolute changes of each sample, (B,), in fp64."""
        return (x_adv.double() - x.double()).abs().flatten(1).sum(1)


NORMS.register("l1")(L1())

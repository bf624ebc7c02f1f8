"""The linf norm: every pixel channel may change by at most eps."""

from torch import Generator, Tensor

from roli_fast import ops
from roli_fast.norms.base import NORMS
from roli_fast.threat import Bounds


class Linf:
    """Steepest ascent is the sign of the gradient (Madry et al., ICLR 2018, section 2.1)."""

    def random_start(
        self,
        x: Tensor,
        *,
        eps: float | Tensor,
        bounds: Bounds,
        generator: Generator | None,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
        """Uniform in the ball, then clipped to the box."""
        return ops.linf_random_start(
            x, eps=eps, bounds=bounds, generator=generator, sample_ids=sample_ids
        )

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
        """One fused signed step, projection and clamp."""
        return ops.linf_step_(x_adv, grad, x, eps=eps, step_size=step_size, bounds=bounds)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Largest absolute change of each sample, (B,), in fp64."""
        return (x_adv.double() - x.double()).abs().flatten(1).amax(1)


NORMS.register("linf")(Linf())

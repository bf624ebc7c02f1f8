"""The linf norm: every pixel channel may change by at most eps."""

import math

from torch import Tensor

from roli_fast import ops
from roli_fast.norms.base import NORMS


class Linf:
    """Steepest ascent is the sign of the gradient (Madry et al., ICLR 2018, section 2.1)."""

    order = math.inf
    usual_eps = 8 / 255

    random_start = staticmethod(ops.linf_random_start)
    """Uniform in the ball, then clipped to the box."""

    step_ = staticmethod(ops.linf_step_)
    """One fused signed step, projection and clamp."""

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Largest absolute change of each sample, (B,), in fp64."""
        return (x_adv.double() - x.double()).abs().flatten(1).amax(1)


NORMS.register("linf")(Linf())

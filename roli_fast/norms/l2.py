"""The l2 norm: the Euclidean length of an image's change is at most eps."""

from torch import Tensor

from roli_fast import ops
from roli_fast.norms.base import NORMS


class L2:
    """Steepest ascent is the gradient over its norm (Madry et al., ICLR 2018, section 2.1)."""

    order = 2.0
    usual_eps = 0.5

    random_start = staticmethod(ops.l2_random_start)
    """Uniform in the ball, then clipped to the box."""

    step_ = staticmethod(ops.l2_step_)
    """One fused step along the gradient, radial projection and clamp."""

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Euclidean length of the change of each sample, (B,), in fp64."""
        return (x_adv.double() - x.double()).flatten(1).norm(dim=1)


NORMS.register("l2")(L2())

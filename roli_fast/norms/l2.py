"""The l2 norm: the Euclidean length of an image's change is at most eps."""

from torch import Tensor

from roli_fast import ops
from roli_fast.norms.base import NORMS, Bounds, Norm
from roli_fast.norms.windows import MassMoves, Size
from roli_fast.ops.rounding import per_sample


class L2(Norm):
    """Steepest ascent is the gradient over its norm (Madry et al., ICLR 2018, section 2.1)."""

    order = 2.0
    usual_eps = 0.5
    msd_length = 50 * 0.05 / 0.5
    """The paper's 50 steps on CIFAR-10."""

    random_start = staticmethod(ops.l2_random_start)  # pyright: ignore[reportAssignmentType]
    """Uniform in the ball, then clipped to the box."""

    step_ = staticmethod(ops.l2_step_)
    """One fused step along the gradient, radial projection and clamp."""

    project_ = staticmethod(ops.l2_project_)
    apgd_step_ = staticmethod(ops.apgd_l2_step_)
    fab_step_ = staticmethod(ops.fab_l2_step_)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Euclidean length of the change of each sample, (B,), in fp64."""
        return (x_adv.double() - x.double()).flatten(1).norm(dim=1)

    def square_moves(self, bounds: Bounds, channels: int, image: Size) -> "L2Moves":
        """Windows whose change is moved."""
        return L2Moves(bounds, channels, image)


class L2Moves(MassMoves):
    """Algorithm 3 of the Square paper."""

    order = 2

    def length(self, delta: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Root of the sum of squares."""
        return (delta**2).sum(dims, keepdim=True).sqrt()

    def budget(self, length: Tensor, moved: Tensor, eps: float | Tensor) -> Tensor:
        """Squares add up."""
        unused = (per_sample(eps, length) ** 2 - length**2).clamp(min=0)
        return (unused / self.channels + moved**2).sqrt()

    def placed(self, x: Tensor, delta: Tensor, eps: float | Tensor) -> Tensor:
        """Scaled to the length eps before it is cut to the box."""
        scale = per_sample(eps, delta) / (self.length(delta, (1, 2, 3)) + 1e-12)
        moved = (x.to(delta.dtype) + (delta * scale).view(x.shape)).to(x.dtype)
        return ops.l2_project_(moved, x, eps=eps, bounds=self.bounds)


NORMS.register("l2")(L2())

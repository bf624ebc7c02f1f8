"""The linf norm: every pixel channel may change by at most eps."""

import math
from dataclasses import dataclass

from torch import Tensor

from roli_fast import ops
from roli_fast.norms.base import NORMS, Bounds, Norm
from roli_fast.norms.windows import Draws, Moves, Proposal, Size, inside, window


class Linf(Norm):
    """Steepest ascent is the sign of the gradient (Madry et al., ICLR 2018, section 2.1)."""

    order = math.inf
    usual_eps = 8 / 255
    unit = 255.0
    msd_length = 50 * 0.003 / 0.03
    """The paper's 50 steps on CIFAR-10."""

    random_start = staticmethod(ops.linf_random_start)  # pyright: ignore[reportAssignmentType]
    """Uniform in the ball, then clipped to the box."""

    step_ = staticmethod(ops.linf_step_)
    """One fused signed step, projection and clamp."""

    apgd_step_ = staticmethod(ops.apgd_linf_step_)
    fab_step_ = staticmethod(ops.fab_linf_step_)

    def project_(self, x_adv: Tensor, x: Tensor, *, eps: float | Tensor, bounds: Bounds) -> Tensor:
        """A step of length 0."""
        return ops.linf_step_(x_adv, x, x, eps=eps, step_size=0.0, bounds=bounds)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Largest absolute change of each sample, (B,), in fp64."""
        return (x_adv.double() - x.double()).abs().flatten(1).amax(1)

    def square_moves(self, bounds: Bounds, channels: int, image: Size) -> "SignMoves":
        """Windows that change one way."""
        return SignMoves(bounds, channels, image, self)


@dataclass(frozen=True)
class SignMoves(Moves):
    """Windows that change by 2 eps one way, channel by channel, cut to ball and box.

    Algorithm 2 of the Square paper; the start is vertical stripes.
    """

    norm: Norm

    def start(self, x: Tensor, eps: float | Tensor, draws: Draws) -> Tensor:
        signs = draws.stripes(self.channels, self.image[1])[:, :, None]
        return self._stepped(x, x, signs, eps, eps)

    def window(self, share: float) -> Size:
        return window(share, self.image)

    def propose(
        self, best: Tensor, x: Tensor, eps: float | Tensor, size: Size, proposal: Proposal
    ) -> Tensor:
        changed = inside(proposal, 0, size, self.image)
        return self._stepped(best, x, changed * proposal.signs[:, :, None, None], eps, eps * 2)

    def _stepped(
        self, point: Tensor, x: Tensor, signs: Tensor, eps: float | Tensor, size: float | Tensor
    ) -> Tensor:
        full = signs.to(x.dtype).expand(len(x), self.channels, *self.image).reshape(x.shape)
        step = self.norm.step_
        return step(point.clone(), full, x, eps=eps, step_size=size, bounds=self.bounds)


NORMS.register("linf")(Linf())

"""The l1 norm: the sum of all changes of an image is at most eps."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from roli_fast import ops
from roli_fast.errors import ArgumentError, describe
from roli_fast.norms.base import NORMS, Bounds, Norm
from roli_fast.norms.windows import MassMoves, Size
from roli_fast.ops.rounding import compute_dtype, per_sample


@dataclass(frozen=True)
class L1(Norm):
    """Sparse steps: the steepest ascent alone would change one entry (Croce & Hein, ICML 2021).

    Args:
        density: which part of an image's entries a step moves, those of largest gradient; 0.05 is
            where APGD starts in training.
    """

    order = 1.0
    usual_eps = 12.0
    msd_length = 50 * 1.0 / 12
    """The paper's 50 steps on CIFAR-10."""
    sparse = True

    density: float = 0.05

    def __post_init__(self) -> None:
        if not 0.0 <= self.density <= 1.0:
            raise ArgumentError(describe("density", "a number in [0, 1]", self.density))

    random_start = staticmethod(ops.l1_random_start)  # pyright: ignore[reportAssignmentType]
    """Uniform in the ball, then clipped to the box."""

    project_ = staticmethod(ops.l1_project_)
    sparse_step_ = staticmethod(ops.l1_step_)
    fab_step_ = staticmethod(ops.fab_l1_step_)

    def search_start(
        self,
        x: Tensor,
        *,
        eps: float | Tensor,
        bounds: Bounds,
        generator: Generator | None,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
        """A Gaussian point projected on the ball, which is sparse; a uniform one is dense."""
        # uniform in the ball of radius sqrt(d): standard normal entries, but for an O(1/d)
        noise = ops.l2_random_start(
            torch.zeros_like(x, dtype=compute_dtype(x.dtype)),
            eps=math.sqrt(x.shape[1:].numel()),
            bounds=(-1e30, 1e30),
            generator=generator,
            sample_ids=sample_ids,
        )
        start = (x + (bounds[1] - bounds[0]) * noise).to(x.dtype)
        return ops.l1_project_(start, x, eps=eps, bounds=bounds)

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

    def with_density(self, density: float) -> "L1":
        """The same norm with steps that move this part of an image's entries."""
        return L1(density)

    def square_moves(self, bounds: Bounds, channels: int, image: Size) -> "L1Moves":
        """Windows whose change is moved."""
        return L1Moves(bounds, channels, image)


@dataclass(frozen=True)
class L1Moves(MassMoves):
    """As in Croce & Hein, "Mind the box", ICML 2021 (arXiv:2103.01208).

    Args:
        spare: part of eps that stays unused; the original leaves 1e-6.
    """

    order = 1

    spare: float = 0.0

    def length(self, delta: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Sum of the absolute values."""
        return delta.abs().sum(dims, keepdim=True)

    def budget(self, length: Tensor, moved: Tensor, eps: float | Tensor) -> Tensor:
        """Lengths add up."""
        unused = (per_sample(eps, length) - length).clamp(min=0)
        return (unused / self.channels + moved) * self.channels

    def placed(self, x: Tensor, delta: Tensor, eps: float | Tensor) -> Tensor:
        """Projected."""
        moved = (x.to(delta.dtype) + delta.view(x.shape)).to(x.dtype)
        return ops.l1_project_(moved, x, eps=eps * (1 - self.spare), bounds=self.bounds)


NORMS.register("l1")(L1())

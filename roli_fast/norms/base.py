"""All that a norm knows, and the table of all norms."""

import math

import torch
from torch import Generator, Tensor

from roli_fast.errors import ArgumentError, describe
from roli_fast.norms.windows import Moves, Size
from roli_fast.ops.linf import momentum_point
from roli_fast.ops.rounding import compute_dtype, per_sample
from roli_fast.registry import Registry

Bounds = tuple[float, float]
"""Lowest and highest valid pixel value."""


class Norm:
    """How attacks move inside one kind of ball, and how it is measured and shown.

    A new norm is one subclass in one file, filed in `NORMS`. Start, step, projection and distance
    it has to have; attacks that need more refuse a norm without it, by name (`check_offers`).
    Shapes: images (B, ...), distances (B,). `eps` and `step_size` are numbers, or one a sample
    (B,), in the units of the images.
    """

    order: float
    """p of the norm, inf for the largest entry."""
    usual_eps: float
    """The radius that papers attack most on images in [0, 1], on CIFAR-10 where it depends on the
    number of pixels."""
    unit: float = 1.0
    """Radii are shown in 1/unit: 255 for grey levels."""
    msd_length: float = 5.0
    """All steps of MSD together, in multiples of eps."""
    sparse: bool = False
    """Whether APGD takes `sparse_step_` and adapts its density, instead of `apgd_step_`."""

    def random_start(
        self,
        x: Tensor,
        *,
        eps: float | Tensor,
        bounds: Bounds,
        generator: Generator | None,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
        """A new tensor: a random point of the ball around `x`, inside the bounds.

        It depends on the generator's next number and a sample's id (`sample_ids`, int64 (B,), by
        default its place in the batch), not on the rest of the batch.
        """
        raise NotImplementedError

    def search_start(
        self,
        x: Tensor,
        *,
        eps: float | Tensor,
        bounds: Bounds,
        generator: Generator | None,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
        """Where APGD starts: a random start, unless the norm has a better one."""
        return self.random_start(
            x, eps=eps, bounds=bounds, generator=generator, sample_ids=sample_ids
        )

    def step_(  # noqa: PLR0913 - a step's own quantities
        self,
        x_adv: Tensor,
        grad: Tensor,
        x: Tensor,
        *,
        eps: float | Tensor,
        step_size: float | Tensor,
        bounds: Bounds,
    ) -> Tensor:
        """Move `x_adv` in place along the steepest ascent of this norm, then project."""
        raise NotImplementedError

    def project_(self, x_adv: Tensor, x: Tensor, *, eps: float | Tensor, bounds: Bounds) -> Tensor:
        """Move `x_adv` in place into the ball around `x` and into the bounds."""
        raise NotImplementedError

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Distance of each sample, (B,), in fp64."""
        raise NotImplementedError

    def dual(self, grad: Tensor) -> Tensor:
        """The dual norm of each sample's gradient, (B,), in fp32 or fp64: by how much a loss rises
        at most, to first order, for each unit of distance."""
        q = {1.0: math.inf, math.inf: 1.0}.get(self.order) or self.order / (self.order - 1)
        return torch.linalg.vector_norm(grad.flatten(1), q, dim=1, dtype=compute_dtype(grad.dtype))

    def largest(self, size: int | None) -> float:
        """The largest distance of two images of `size` values in [0, 1]; inf where it depends on
        the size, and that is not known."""
        if math.isinf(self.order):
            return 1.0
        return math.inf if size is None else max(size, 1) ** (1 / self.order)

    def with_density(self, density: float) -> "Norm":
        """The same norm with steps that move this part of an image's entries, if it is sparse."""
        return self

    def apgd_step_(  # noqa: PLR0913 - a step's own quantities
        self,
        x_adv: Tensor,
        x_prev: Tensor,
        grad: Tensor,
        x: Tensor,
        *,
        eps: float | Tensor,
        step_size: float | Tensor,
        momentum: float,
        bounds: Bounds,
    ) -> Tensor:
        """APGD's step with momentum, in the memory of `x_prev`, the iterate before `x_adv`; see
        `ops.apgd_linf_step_`. With momentum 1 `x_prev` is not looked at."""
        u = self.step_(x_adv.clone(), grad, x, eps=eps, step_size=step_size, bounds=bounds)
        wide = compute_dtype(x.dtype)
        share = per_sample(momentum, x)
        x_prev.copy_(momentum_point(x_adv.to(wide), x_prev, u.to(wide), share))
        return self.project_(x_prev, x, eps=eps, bounds=bounds)

    def sparse_step_(  # noqa: PLR0913 - a step's own quantities
        self,
        x_adv: Tensor,
        grad: Tensor,
        x: Tensor,
        *,
        eps: float | Tensor,
        step_size: float | Tensor,
        density: float | Tensor,
        bounds: Bounds,
    ) -> Tensor:
        """As `step_`, with the part of an image's entries that moves, a number or (B,)."""
        raise NotImplementedError

    def fab_step_(  # noqa: PLR0913 - a step's own quantities
        self,
        x_adv: Tensor,
        grad: Tensor,
        x: Tensor,
        *,
        value: Tensor,
        alpha_max: float,
        eta: float,
        bounds: Bounds,
    ) -> Tensor:
        """FAB's step in place towards the plane through `value` (B,) with the normal `grad`; see
        `ops.fab_linf_step_`."""
        raise NotImplementedError

    def square_moves(self, bounds: Bounds, channels: int, image: Size) -> Moves:
        """How the Square attack changes images of so many channels, rows and columns."""
        raise NotImplementedError


NORMS: Registry[Norm] = Registry("norm")


def check_offers(norm: str | None, part: str) -> None:
    """Raise `ArgumentError` for a norm without this part of `Norm`, `fab_step_` say."""
    having = [name for name in NORMS if getattr(type(NORMS[name]), part) is not getattr(Norm, part)]
    if norm is not None and norm not in having:
        expected = f"one of: {', '.join(having)}, the norms that have `{part}`"
        raise ArgumentError(describe("norm", expected, repr(norm)))

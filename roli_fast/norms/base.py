"""The interface of a norm and the table of all norms."""

from typing import Protocol

from torch import Generator, Tensor

from roli_fast.registry import Registry

Bounds = tuple[float, float]
"""Lowest and highest valid pixel value."""


class Norm(Protocol):
    """How an attack moves inside one kind of ball. Shapes: images (B, ...), distances (B,).

    `order` is the p of the norm. `usual_eps` is the radius that papers attack most on images in
    [0, 1], on CIFAR-10 where it depends on the number of pixels.
    """

    order: float
    usual_eps: float

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
        ...

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
        """Move `x_adv` in place along the steepest ascent of this norm, then project."""
        ...

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Distance of each sample, (B,), in fp64."""
        ...


NORMS: Registry[Norm] = Registry("norm")

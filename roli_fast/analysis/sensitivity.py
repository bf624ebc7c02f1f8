"""How fast the margin between two classes moves with the input."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from roli_fast.analysis.costs import Cost, count_of, say_for
from roli_fast.analysis.view import LinearHead
from roli_fast.data import Batch
from roli_fast.engine import Engine, InputGradient, bound
from roli_fast.errors import ArgumentError, describe
from roli_fast.losses import margin
from roli_fast.norms import NORMS


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """How strongly each sample's margin m = z_y - max_{k != y} z_k depends on its input.

    Args:
        norm: of the perturbations.
        samples: ||d m / d x||_q, (N,) on the CPU; the head's difference v_y - v_k through the
            features' Jacobian.
        margins: m, (N,): above 0 where a sample is right.
    """

    norm: str
    samples: Tensor = field(repr=False)
    margins: Tensor = field(repr=False)

    @property
    def mean(self) -> float:
        """Mean over the samples."""
        return self.samples.double().mean().item()

    @property
    def radii(self) -> Tensor:
        """margin / sensitivity, (N,): how far the boundary is to first order, below 0 where a
        sample is wrong; 0 / 0 is NaN."""
        return self.margins / self.samples

    def __float__(self) -> float:
        return self.mean


def margin_sensitivity_cost(images: int) -> Cost:
    """A forward and an input gradient a sample."""
    return Cost("margin sensitivity", images, images, bytes=8 * images)


def margin_sensitivity(
    model: nn.Module | LinearHead,
    batches: Iterable[Batch],
    norm: str,
    *,
    engine: Engine | None = None,
) -> Sensitivity:
    """||(v_y - v_k) d phi / d x||_q of each sample, k the runner-up: the likeliest wrong class.

    To first order a perturbation of size r moves the margin by at most r times this.

    Args:
        model: images (B, ...) -> logits (B, C), or the view of it; the head need not be linear.
        batches: (x, y, ids) on the model's device.
        norm: of the perturbations, one of `NORMS`; q is that of its dual.
        engine: how the passes are made.

    Raises:
        ArgumentError: another norm, or no images.
    """
    measure = NORMS[norm].dual
    count = count_of(batches)
    say_for(count, margin_sensitivity_cost(count or 1))
    slopes: list[Tensor] = []
    margins: list[Tensor] = []
    network = model.model if isinstance(model, LinearHead) else model
    with InputGradient(bound(network, engine), margin) as gradient:
        for x, y, _ids in batches:
            grad, loss, _logits = gradient(x, y)
            slopes.append(measure(grad).cpu())
            margins.append(-loss.cpu())
    if not sum(map(len, slopes)):
        raise ArgumentError(describe("batches", "at least one image", "none"))
    return Sensitivity(norm, torch.cat(slopes), torch.cat(margins))

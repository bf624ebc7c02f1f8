"""Confidence beside accuracy, in bins: the stuff of calibration errors and reliability diagrams."""

from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from roli_fast.attacks.objective import is_right
from roli_fast.engine.input_gradient import check_labels
from roli_fast.errors import ArgumentError, ArgumentTypeError, describe, is_number


@dataclass(frozen=True)
class Bin:
    """The samples whose confidence is in (low, high].

    Args:
        low: confidence above which samples are counted.
        high: highest confidence of the bin.
        count: samples in it.
        confidence: their mean confidence; 0 where there are none.
        accuracy: the share of them that is right; 0 where there are none.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float

    @property
    def gap(self) -> float:
        """|accuracy - confidence|."""
        return abs(self.accuracy - self.confidence)


def reliability(logits: Tensor, y: Tensor, bins: int = 15) -> list[Bin]:
    """Samples by their confidence, the largest softmax probability, in bins of equal width.

    The bins are (0, 1/bins], ..., (1 - 1/bins, 1], as in Guo et al. (ICML 2017, arXiv:1706.04599),
    and the empty ones are among them. (torchmetrics closes them below, gives a confidence of
    exactly 1 a bin of its own, so that its ECE differs where softmax saturates, rounds to fp32, and
    takes logits that happen to lie in [0, 1] for probabilities.)

    Args:
        logits: (N, C), floating point.
        y: labels (N,), int64.
        bins: how many.

    Returns:
        The bins, in order.

    Raises:
        ArgumentError: no samples, shapes or labels that do not fit, logits that are not finite,
            no bins.
    """
    if not is_number(bins, Integral) or bins < 1:
        raise ArgumentError(describe("bins", "an integer >= 1", bins, "15 is usual."))
    logits, y = in_double(logits, y)
    confidence = logits.softmax(1).amax(1)
    right = is_right(logits, y).to(confidence.dtype)
    edges = torch.arange(bins + 1, dtype=torch.float64) / bins
    place = (torch.bucketize(confidence, edges) - 1).clamp(0, bins - 1)
    count = torch.bincount(place, minlength=bins)
    some = count.clamp(min=1)
    means = [torch.bincount(place, v, minlength=bins) / some for v in (confidence, right)]
    columns = (edges[:-1], edges[1:], count, *means)
    return [Bin(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def in_double(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The same logits in fp64, and the labels, on the CPU.

    Raises:
        ArgumentError: no samples, shapes or labels that do not fit, logits that are not finite.
        ArgumentTypeError: tensors of another type.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise ArgumentTypeError(describe("logits", "a floating-point tensor (N, C)", got))
    if logits.ndim != 2 or logits.shape[0] < 1 or logits.shape[1] < 2:
        what = "shape (N, C) with N >= 1 samples and C >= 2 classes"
        raise ArgumentError(describe("logits", what, tuple(logits.shape)))
    check_labels(y, logits)
    found = logits.detach().to("cpu", torch.float64)
    if not found.isfinite().all():
        broken = int((~found.isfinite()).any(1).sum())
        got = f"NaN or infinite ones for {broken} of {len(found)} samples"
        raise ArgumentError(describe("logits", "finite numbers", got, "The model has broken down."))
    return found, y.detach().cpu()

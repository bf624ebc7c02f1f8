"""Temperature scaling: one number by which logits are divided, fitted to validation images."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from roli_fast.analysis.costs import Cost, say
from roli_fast.analysis.reliability import in_double

COLDEST, HOTTEST = 1e-2, 1e2
"""Temperatures that are looked at."""

LEAST_IMAGES = 100
"""Fewer validation images fit no temperature. One fitted number costs about 1 / (2 N) nats on new
data (what Akaike's criterion corrects for): 0.005 at 100 images, 0.02 at 25. The paper's own fits
raised the calibration error with 25 images (CB, LoRA) and with 56 (WSC)."""


LOOKS = 12
"""Slopes and curvatures that a fit takes, about."""


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature, or 1 and why none was fitted.

    Args:
        value: what logits are divided by; the same as dividing the head's weight and bias by it, so
            no prediction on a given image changes (an attack through the logits may).
        fitted: whether it was; else `value` is 1.
        reason: why not; empty where it was.
        images: validation images seen.
    """

    value: float
    fitted: bool
    reason: str
    images: int


def fit_temperature(logits: Tensor, y: Tensor) -> Temperature:
    """The temperature T that minimises the mean cross-entropy of logits / T (Guo et al., ICML 2017,
    arXiv:1706.04599), between 0.01 and 100.

    In b = 1/T the loss mean(logsumexp(b z) - b z_y) is convex, with the slope mean(E_p[z] - z_y)
    and the curvature mean(Var_p[z]) under p = softmax(b z): its one minimum is found by Newton's
    method within a bracket, in fp64, to twelve digits. No learning rate, some ten looks.

    Where no minimum lies between, and with fewer than `LEAST_IMAGES` images, T stays 1 and `reason`
    says so: if every image is right, say, the loss falls without end as T goes to 0.

    Args:
        logits: (N, C) of validation images, clean ones or attacked ones; fit one each.
        y: their labels (N,), int64.

    Raises:
        ArgumentError: no images, shapes or labels that do not fit, logits that are not finite.
    """
    logits, y = in_double(logits, y)
    say(fit_temperature_cost(*logits.shape))
    return fitted(logits, y)


def fit_temperature_cost(images: int, classes: int) -> Cost:
    """No pass: some `LOOKS` looks at all logits, in fp64."""
    numbers = images * classes
    return Cost("temperature", flops=10.0 * LOOKS * numbers, bytes=4 * 8 * numbers)


def fitted(logits: Tensor, y: Tensor) -> Temperature:
    """`fit_temperature` of logits in fp64 that were looked at, without a word of what it costs."""
    count, own = len(y), logits.gather(1, y[:, None]).squeeze(1)
    reason = _reason(logits, own)
    if reason:
        return Temperature(1.0, False, f"{reason}: T stays 1", count)
    return Temperature(1 / _root(logits, own), True, "", count)


def _reason(logits: Tensor, own: Tensor) -> str:
    """Why no temperature can be fitted; empty where one can."""
    if len(own) < LEAST_IMAGES:
        return f"{len(own)} validation images, fewer than {LEAST_IMAGES}"
    if _slope(logits, own, 0.0)[0] >= 0:
        return "these logits are no better than a uniform guess, their best T is infinite"
    if _slope(logits, own, 1 / HOTTEST)[0] >= 0:
        return f"the best T is above {HOTTEST:g}"
    if bool((own == logits.amax(1)).all()):
        return f"all of {len(own)} validation images are right, which no finite 1/T fits"
    if _slope(logits, own, 1 / COLDEST)[0] <= 0:
        return f"the best T is below {COLDEST:g}"
    return ""


def _root(logits: Tensor, own: Tensor) -> float:
    """The 1/T in (1/HOTTEST, 1/COLDEST) at which the slope is zero.

    A Newton step that leaves the bracket, or is more than half the step before, is replaced by the
    bracket's geometric middle: at most some 90 looks, in practice about ten.
    """
    low, high = 1 / HOTTEST, 1 / COLDEST
    at, before = 1.0, high - low
    while high - low > 1e-12 * at:
        slope, curvature = _slope(logits, own, at)
        if slope == 0:
            return at
        low, high = (low, at) if slope > 0 else (at, high)
        step = -slope / curvature if curvature > 0 else math.inf
        if not low < at + step < high or abs(step) > before / 2:
            step = math.sqrt(low * high) - at
        before = abs(step)
        if before <= 1e-12 * at:
            break
        at += step
    return at


def _slope(logits: Tensor, own: Tensor, inverse: float) -> tuple[float, float]:
    """First and second derivative of the mean cross-entropy by 1/T, at 1/T = `inverse`."""
    p = torch.softmax(inverse * logits, 1)
    mean = (p * logits).sum(1)
    spread = (p * (logits - mean[:, None]).square()).sum(1)
    return float((mean - own).mean()), float(spread.mean())

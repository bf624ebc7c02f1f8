"""How far a classifier's confidence can be trusted, before and after a temperature.

Pure functions of logits (N, C), floating point, and labels (N,), int64, wherever they come from;
all sums are taken in fp64 on the CPU. They make no pass through a model: an image costs nothing
beyond the forward (and, under attack, the search) that gave its logits. What they refuse, see
`reliability`.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from roli_fast.attacks.objective import is_right
from roli_fast.engine.input_gradient import check_labels
from roli_fast.errors import ArgumentError, describe

BINS = 15
"""Bins of the calibration errors, as is usual."""

LEAST_IN_BIN = 10
"""Samples that a bin needs to count for the maximum calibration error."""

COLDEST, HOTTEST = 1e-2, 1e2
"""Temperatures that are looked at."""

LEAST_IMAGES = 100
"""Fewer validation images fit no temperature. One fitted number costs about 1 / (2 N) nats on new
data (what Akaike's criterion corrects for): 0.005 at 100 images, 0.02 at 25. The paper's own fits
raised the calibration error with 25 images (CB, LoRA) and with 56 (WSC)."""

Labelled = tuple[Tensor, Tensor]
"""Logits (N, C) and labels (N,) of the same images."""


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
        ArgumentError: no samples, shapes or labels that do not fit, logits that are not finite.
    """
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


def ece(logits: Tensor, y: Tensor, bins: int = BINS) -> float:
    """Expected calibration error: sum over bins of n_b / n |accuracy_b - confidence_b|.

    Args:
        logits: (N, C).
        y: labels (N,), int64.
        bins: of equal width, (low, high] (`reliability`).

    Returns:
        A number in [0, 1].
    """
    return sum(own.count * own.gap for own in reliability(logits, y, bins)) / len(y)


def mce(logits: Tensor, y: Tensor, bins: int = BINS, least: int = LEAST_IN_BIN) -> float | None:
    """Maximum calibration error: the largest |accuracy_b - confidence_b| over the bins that have at
    least `least` samples, 1 or more; None where none has. With 1 single samples decide it.
    """
    found = reliability(logits, y, bins)
    return max((own.gap for own in found if own.count >= least), default=None)


def nll(logits: Tensor, y: Tensor) -> float:
    """Mean negative log-likelihood of the labels, in nats: the cross-entropy."""
    return float(cross_entropy(*in_double(logits, y)))


def brier(logits: Tensor, y: Tensor) -> float:
    """Brier score: the mean over samples and classes of (probability - one-hot)^2.

    Brier (1950) and scikit-learn sum over the classes: C times as much.
    """
    logits, y = in_double(logits, y)
    return float((logits.softmax(1) - one_hot(y, logits.shape[1])).square().mean())


def measure(
    logits: Tensor, y: Tensor, bins: int = BINS, least: int = LEAST_IN_BIN
) -> dict[str, Any]:
    """All of them, and the bins of a reliability diagram, as a tree for a JSON file.

    Returns:
        "accuracy", "ece", "mce" (or None), "nll", "brier", and "bins": each "low", "high", "count",
        "confidence", "accuracy".
    """
    logits, y = in_double(logits, y)
    return {
        "accuracy": int(is_right(logits, y).sum()) / len(y),
        "ece": ece(logits, y, bins),
        "mce": mce(logits, y, bins, least),
        "nll": nll(logits, y),
        "brier": brier(logits, y),
        "bins": [asdict(own) for own in reliability(logits, y, bins)],
    }


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

    In b = 1/T the loss mean(logsumexp(b z) - b z_y) is convex with the slope mean(E_p[z] - z_y),
    p = softmax(b z): its one minimum is where that is zero, found by Brent's method in fp64. No
    learning rate, some ten looks.

    Where no minimum lies between, and with fewer than `LEAST_IMAGES` images, T stays 1 and `reason`
    says so: if every image is right, say, the loss falls without end as T goes to 0.

    Args:
        logits: (N, C) of validation images, clean ones or attacked ones; fit one each.
        y: their labels (N,), int64.

    Raises:
        ArgumentError: no images, shapes or labels that do not fit, logits that are not finite.
    """
    logits, y = in_double(logits, y)
    own = logits.gather(1, y[:, None]).squeeze(1)

    def slope(inverse: float) -> float:
        return float(((inverse * logits).softmax(1) * logits).sum(1).sub(own).mean())

    reason = ""
    if len(y) < LEAST_IMAGES:
        reason = f"{len(y)} validation images, fewer than {LEAST_IMAGES}"
    elif slope(0.0) >= 0:
        reason = "these logits are no better than a uniform guess, their best T is infinite"
    elif slope(1 / HOTTEST) >= 0:
        reason = f"the best T is above {HOTTEST:g}"
    elif bool((own == logits.amax(1)).all()):
        reason = f"all of {len(y)} validation images are right, which no finite 1/T fits"
    elif slope(1 / COLDEST) <= 0:
        reason = f"the best T is below {COLDEST:g}"
    if reason:
        return Temperature(1.0, False, f"{reason}: T stays 1", len(y))
    inverse: Any = brentq(slope, 1 / HOTTEST, 1 / COLDEST, xtol=1e-15)
    return Temperature(1 / inverse, True, "", len(y))


def report(
    val_clean: Labelled,
    val_adv: Labelled,
    test_clean: Labelled,
    test_adv: Labelled,
) -> dict[str, dict[str, Any]]:
    """Calibration on clean and on attacked test images, before and after their own temperature.

    A temperature fitted to clean images need not suit attacked ones: each has its own, fitted to
    validation images of its kind, and the attacked test images are measured with the clean one too.

    Args:
        val_clean: (logits, y) of clean validation images.
        val_adv: of attacked validation images.
        test_clean: of clean test images.
        test_adv: of attacked test images; the attack does not know the temperature.

    Returns:
        "clean" and "adversarial", each with "temperature", "fitted", "reason",
        "validation_images", "test_images", "before", "after" (`measure`) and
        "with_clean_temperature" (`measure`; None under "clean").
    """
    clean, own = (fit_temperature(*val) for val in (val_clean, val_adv))

    def measured(test: Labelled, temperature: float) -> dict[str, Any]:
        logits, y = in_double(*test)
        return measure(logits / temperature, y)

    trees = {}
    for kind, fit, test in (("clean", clean, test_clean), ("adversarial", own, test_adv)):
        trees[kind] = {
            "temperature": fit.value,
            "fitted": fit.fitted,
            "reason": fit.reason,
            "validation_images": fit.images,
            "test_images": len(test[1]),
            "before": measured(test, 1.0),
            "after": measured(test, fit.value),
            "with_clean_temperature": None,
        }
    trees["adversarial"]["with_clean_temperature"] = measured(test_adv, clean.value)
    return trees


def in_double(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The same logits in fp64, and the labels, on the CPU.

    Raises:
        ArgumentError: no samples, shapes or labels that do not fit, logits that are not finite.
    """
    if logits.ndim != 2 or logits.shape[0] < 1 or logits.shape[1] < 2:
        what = "shape (N, C) with N >= 1 samples and C >= 2 classes"
        raise ArgumentError(describe("logits", what, tuple(logits.shape)))
    check_labels(y, logits)
    found = logits.detach().to("cpu", torch.float64)
    if broken := int((~found.isfinite()).any(1).sum()):
        got = f"NaN or infinite ones for {broken} of {len(found)} samples"
        raise ArgumentError(describe("logits", "finite numbers", got, "The model has broken down."))
    return found, y.detach().cpu()

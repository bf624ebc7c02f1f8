"""How far a classifier's confidence can be trusted, before and after a temperature.

Pure functions of logits (N, C), floating point, and labels (N,), int64, wherever they come from;
all sums are taken in fp64 on the CPU. They make no pass through a model: an image costs nothing
beyond the forward (and, under attack, the search) that gave its logits.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from roli_fast.analysis.costs import Cost, say
from roli_fast.analysis.reliability import Bin as Bin
from roli_fast.analysis.reliability import in_double
from roli_fast.analysis.reliability import reliability as reliability
from roli_fast.analysis.temperature import Temperature as Temperature
from roli_fast.analysis.temperature import fit_temperature as fit_temperature
from roli_fast.analysis.temperature import fit_temperature_cost as fit_temperature_cost
from roli_fast.analysis.temperature import fitted
from roli_fast.attacks.objective import is_right
from roli_fast.errors import ArgumentError, describe

BINS = 15
"""Bins of the calibration errors, as is usual."""

LEAST_IN_BIN = 10
"""Samples that a bin needs to count for the maximum calibration error."""

Labelled = tuple[Tensor, Tensor]
"""Logits (N, C) and labels (N,) of the same images."""


def ece(logits: Tensor, y: Tensor, bins: int = BINS) -> float:
    """Expected calibration error: sum over bins of n_b / n |accuracy_b - confidence_b|.

    Args:
        logits: (N, C).
        y: labels (N,), int64.
        bins: of equal width, (low, high] (`reliability`).

    Returns:
        A number in [0, 1].

    Raises:
        ArgumentError: see `reliability`.
    """
    return _expected(reliability(logits, y, bins))


def mce(logits: Tensor, y: Tensor, bins: int = BINS, least: int = LEAST_IN_BIN) -> float | None:
    """Maximum calibration error: the largest |accuracy_b - confidence_b| over the bins that have at
    least `least` samples; None where none has. With `least` 1 single samples decide it.

    Raises:
        ArgumentError: see `reliability`; `least` below 1.
    """
    return _maximum(reliability(logits, y, bins), least)


def nll(logits: Tensor, y: Tensor) -> float:
    """Mean negative log-likelihood of the labels, in nats: the cross-entropy.

    Raises:
        ArgumentError: see `reliability`.
    """
    return float(cross_entropy(*in_double(logits, y)))


def brier(logits: Tensor, y: Tensor) -> float:
    """Brier score: the mean over samples and classes of (probability - one-hot)^2.

    Brier (1950) and scikit-learn sum over the classes: C times as much.

    Raises:
        ArgumentError: see `reliability`.
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

    Raises:
        ArgumentError: see `reliability`; `least` below 1.
    """
    logits, y = in_double(logits, y)
    say(measure_cost(*logits.shape))
    return _tree(logits, y, bins, least)


def measure_cost(images: int, classes: int) -> Cost:
    """No pass: a softmax for each of the numbers, in fp64."""
    numbers = images * classes
    return Cost("calibration", flops=30.0 * numbers, bytes=4 * 8 * numbers)


def _tree(logits: Tensor, y: Tensor, bins: int, least: int) -> dict[str, Any]:
    """`measure` of logits in fp64, without a word of what it costs."""
    found = reliability(logits, y, bins)
    return {
        "accuracy": int(is_right(logits, y).sum()) / len(y),
        "ece": _expected(found),
        "mce": _maximum(found, least),
        "nll": nll(logits, y),
        "brier": brier(logits, y),
        "bins": [asdict(own) for own in found],
    }


def report(
    val_clean: Labelled,
    val_adv: Labelled,
    test_clean: Labelled,
    test_adv: Labelled,
    *,
    bins: int = BINS,
    least: int = LEAST_IN_BIN,
) -> dict[str, dict[str, Any]]:
    """Calibration on clean and on attacked test images, before and after their own temperature.

    A temperature fitted to clean images need not suit attacked ones: each has its own, fitted to
    validation images of its kind, and the attacked test images are measured with the clean one too.

    Args:
        val_clean: (logits, y) of clean validation images.
        val_adv: of attacked validation images.
        test_clean: of clean test images.
        test_adv: of attacked test images; the attack does not know the temperature.
        bins: see `ece`.
        least: see `mce`.

    Returns:
        "clean" and "adversarial", each with "temperature", "fitted", "reason",
        "validation_images", "test_images", "before", "after" (`measure`) and
        "with_clean_temperature" (`measure`; None under "clean").

    Raises:
        ArgumentError: see `reliability`.
    """
    classes = test_clean[0].shape[-1]
    say(report_cost(len(val_clean[1]), len(test_clean[1]), classes))
    clean, own = (fitted(*in_double(*val)) for val in (val_clean, val_adv))
    borrowed = _measured(test_adv, clean.value, bins, least)
    return {
        "clean": _calibration(clean, test_clean, bins, least) | {"with_clean_temperature": None},
        "adversarial": _calibration(own, test_adv, bins, least)
        | {"with_clean_temperature": borrowed},
    }


def report_cost(validation_images: int, test_images: int, classes: int) -> Cost:
    """No pass: two temperatures, and calibration measured five times."""
    fits = fit_temperature_cost(validation_images, classes)
    tables = measure_cost(test_images, classes)
    flops = 2 * fits.flops + 5 * tables.flops
    return Cost("calibration", flops=flops, bytes=max(fits.bytes, tables.bytes))


def _calibration(temperature: Temperature, test: Labelled, bins: int, least: int) -> dict[str, Any]:
    """What `report` says of one kind of images."""
    return {
        "temperature": temperature.value,
        "fitted": temperature.fitted,
        "reason": temperature.reason,
        "validation_images": temperature.images,
        "test_images": len(test[1]),
        "before": _measured(test, 1.0, bins, least),
        "after": _measured(test, temperature.value, bins, least),
    }


def _measured(test: Labelled, temperature: float, bins: int, least: int) -> dict[str, Any]:
    logits, y = in_double(*test)
    return _tree(logits / temperature, y, bins, least)


def _expected(bins: Sequence[Bin]) -> float:
    return sum(own.count * own.gap for own in bins) / sum(own.count for own in bins)


def _maximum(bins: Sequence[Bin], least: int) -> float | None:
    if least < 1:
        raise ArgumentError(describe("least", "an integer >= 1", least))
    return max((own.gap for own in bins if own.count >= least), default=None)

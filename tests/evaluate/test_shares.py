"""How sure an accuracy is: by hand, published, and how often intervals hold the truth."""

import math

import pytest
import torch

from roli_fast.errors import ArgumentError
from roli_fast.evaluate import standard_error, wilson_interval
from roli_fast.evaluate.shares import collapse, to_flags


def test_standard_errors_by_hand() -> None:
    """sqrt(0.5 * 0.5 / 100) = 0.05; 0.2 over 64: sqrt(0.16 / 64) = 0.05."""
    assert standard_error(0.5, 100) == pytest.approx(0.05)
    assert standard_error(0.2, 64) == pytest.approx(0.05)
    assert standard_error(0.0, 10) == standard_error(1.0, 10) == 0.0
    with pytest.raises(ArgumentError, match=r"`accuracy`: expected a share in \[0, 1\], got 25.5"):
        standard_error(25.5, 100)


def test_by_hand() -> None:
    """8 of 10 at z = 2 (level 0.9545): (0.8 + 0.2 -+ 2 sqrt(0.016 + 0.01)) / 1.4."""
    level = math.erf(2 / math.sqrt(2))
    half = 2 * math.sqrt(0.026)
    expected = ((1 - half) / 1.4, (1 + half) / 1.4)  # 0.4839, 0.9446
    assert wilson_interval(8, 10, level=level) == pytest.approx(expected)
    assert expected == pytest.approx((0.4839, 0.9446), abs=1e-4)
    assert wilson_interval(8, 10) == pytest.approx((0.490, 0.943), abs=5e-4)  # published


def test_none_and_all() -> None:
    """z^2 / (n + z^2) = 3.8415 / 103.8415 for none of 100; all of them is its mirror image."""
    low, high = wilson_interval(0, 100)
    assert low == 0 and high == pytest.approx(0.036994, abs=1e-6)
    assert wilson_interval(100, 100)[1] == 1
    assert wilson_interval(100, 100) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    with pytest.raises(ArgumentError, match="`right, count`"):
        wilson_interval(6, 5)


@pytest.mark.parametrize("truth", [0.05, 0.3, 0.5, 0.9])
def test_it_holds_the_truth_as_often_as_it_says(truth: float) -> None:
    """Exactly, over all outcomes of 200 images: 95 % on average, 2 points more or less."""
    held = 0.0
    for right in range(201):
        low, high = wilson_interval(right, 200)
        chance = math.comb(200, right) * truth**right * (1 - truth) ** (200 - right)
        held += chance * (low <= truth <= high)
    assert 0.93 < held < 0.97


@pytest.mark.parametrize(
    ("clean", "words"),
    [
        ("1110000000", "right for class 'cat' alone"),  # as a model that always says so
        ("1101000000", "within the noise of 40.0 %"),  # 3 of 10
        ("1111011111", None),
        ("0000000000", "may have learnt nothing"),
    ],
)
def test_a_model_that_has_learnt_nothing_is_told(clean: str, words: str | None) -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
    told = collapse(to_flags(clean), labels, {0: "cat", 1: "dog", 2: "owl"})
    assert told is None if words is None else words in str(told)

"""Calibration errors: by hand, and beside torchmetrics and scikit-learn; the fitted temperature: by
hand, by its slope, and where none can be fitted."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from roli_fast.analysis import calibration
from roli_fast.analysis.calibration import (
    brier,
    ece,
    fit_temperature,
    mce,
    measure,
    nll,
    reliability,
)
from roli_fast.errors import ArgumentError


def logits_of(*rows: tuple[float, ...]) -> torch.Tensor:
    """Logits whose softmax has these rows."""
    return torch.tensor(rows, dtype=torch.float64).log()


HAND = logits_of((0.9, 0.1), (0.8, 0.2), (0.3, 0.7), (0.6, 0.4)), torch.tensor([0, 1, 1, 1])
"""Two bins above one half with bins=4, (0.5, 0.75] and (0.75, 1]: .7 right and .6 wrong, .9 right
and .8 wrong."""


def drawn(n: int = 3000, classes: int = 7, scale: float = 2.0, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, classes, generator=generator)
    return logits, torch.multinomial((logits / 2).softmax(1), 1, generator=generator).squeeze(1)


def test_bins_and_errors_of_four_samples() -> None:
    found = reliability(*HAND, bins=4)
    assert [(own.low, own.high, own.count) for own in found] == [
        (0.0, 0.25, 0),
        (0.25, 0.5, 0),
        (0.5, 0.75, 2),
        (0.75, 1.0, 2),
    ]
    assert [own.confidence for own in found] == pytest.approx([0, 0, 0.65, 0.85])
    assert [own.accuracy for own in found] == [0, 0, 0.5, 0.5]
    assert ece(*HAND, bins=4) == pytest.approx((2 * 0.15 + 2 * 0.35) / 4)
    assert mce(*HAND, bins=4, least=2) == pytest.approx(0.35)
    assert mce(*HAND, bins=4, least=3) is None
    assert nll(*HAND) == pytest.approx(-math.log(0.9 * 0.2 * 0.7 * 0.4) / 4)
    assert brier(*HAND) == pytest.approx((0.1**2 + 0.8**2 + 0.3**2 + 0.6**2) / 4)
    tree = measure(*HAND, bins=4, least=3)
    assert json.loads(json.dumps(tree)) == tree and tree["accuracy"] == 0.5
    assert tree["mce"] is None and tree["bins"][3]["confidence"] == pytest.approx(0.85)


def test_a_bin_is_open_below_and_closed_above() -> None:
    halves = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0])  # confidence exactly 1/2
    assert [own.count for own in reliability(*halves, bins=2)] == [1, 0]
    certain = torch.tensor([[1000.0, 0.0]]), torch.tensor([0])  # exactly 1, in the last bin
    assert [own.count for own in reliability(*certain, bins=3)] == [0, 0, 1]


def test_few_samples_do_not_decide_the_maximum() -> None:
    sure = logits_of((0.99, 0.01)).repeat(10, 1)
    guess = logits_of((0.55, 0.45))
    logits, y = torch.cat([sure, guess]), torch.cat([torch.zeros(10).long(), torch.tensor([1])])
    assert mce(logits, y, least=1) == pytest.approx(0.55)
    assert mce(logits, y) == pytest.approx(0.01)


def test_as_torchmetrics_and_scikit_learn() -> None:
    """The first rounds to fp32."""
    logits, y = drawn()
    p = logits.double().softmax(1)
    for norm, value in (("l1", ece(logits, y)), ("max", mce(logits, y, least=1))):
        other = multiclass_calibration_error(p, y, num_classes=7, n_bins=15, norm=norm)
        assert value == pytest.approx(float(other), abs=1e-6)
    assert nll(logits, y) == pytest.approx(log_loss(y.numpy(), p.numpy()), rel=1e-12)
    summed = (p - torch.eye(7)[y]).square().sum(1).mean()
    assert brier(logits, y) == pytest.approx(float(summed) / 7, rel=1e-12)


def test_certainty_is_no_bin_of_its_own() -> None:
    """Where torchmetrics differs: 0.95 right and 1.0 wrong share a bin, |0.5 - 0.975|."""
    p = torch.tensor([[0.95, 0.05], [1.0, 0.0]], dtype=torch.float64)
    logits, y = p.clamp(min=1e-300).log(), torch.tensor([0, 1])
    assert ece(logits, y, bins=10) == pytest.approx(0.475)
    other = multiclass_calibration_error(p, y, num_classes=2, n_bins=10, norm="l1")
    assert float(other) == pytest.approx((0.05 + 1) / 2), "torchmetrics agrees by now: use it"


def test_the_report_gives_each_kind_of_image_its_own_temperature() -> None:
    val, test = drawn(3000, seed=1), drawn(3000, seed=2)  # logits twice too large
    hot_val, hot_test = drawn(3000, seed=3), drawn(3000, seed=4)
    attacked_val, attacked_test = (2 * hot_val[0], hot_val[1]), (2 * hot_test[0], hot_test[1])
    found = calibration.report(val, attacked_val, test, attacked_test)
    clean, adversarial = found["clean"], found["adversarial"]
    assert clean["temperature"] == pytest.approx(2, rel=0.1)
    assert adversarial["temperature"] == pytest.approx(4, rel=0.1)
    assert clean["fitted"] and adversarial["fitted"] and clean["with_clean_temperature"] is None
    assert clean["after"] == measure(test[0].double() / clean["temperature"], test[1])
    errors = [adversarial[n]["ece"] for n in ("after", "with_clean_temperature", "before")]
    assert errors == sorted(errors) and errors[0] < 0.03 < errors[1]
    assert {d["accuracy"] for d in (adversarial["before"], adversarial["after"])} == {
        adversarial["with_clean_temperature"]["accuracy"]
    }
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("logits", "y", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0).long(), "`logits`: expected shape"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), "`y`: expected labels in"),
        (torch.tensor([[0.0, math.nan]]), torch.tensor([0]), "1 of 1 samples"),
    ],
)
def test_what_cannot_be_measured(logits: torch.Tensor, y: torch.Tensor, message: str) -> None:
    for metric in (ece, mce, nll, brier, measure, reliability, calibration.fit_temperature):
        with pytest.raises(ArgumentError, match=message):
            metric(logits, y)


def two_classes(right: int, wrong: int, margin: float) -> tuple[torch.Tensor, torch.Tensor]:
    """So many samples with logits (margin, 0), of which `right` have the label 0."""
    n = right + wrong
    logits = torch.tensor([[margin, 0.0]], dtype=torch.float64).repeat(n, 1)
    return logits, (torch.arange(n) >= right).long()


@pytest.mark.parametrize(("right", "margin"), [(150, 3.0), (110, 0.01), (199, 50.0), (101, 0.9)])
def test_by_hand(right: int, margin: float) -> None:
    """sigmoid(margin / T) is the share that is right: T = margin / ln(right / wrong)."""
    found = fit_temperature(*two_classes(right, 200 - right, margin))
    assert found.value == pytest.approx(margin / math.log(right / (200 - right)), rel=1e-9)
    assert (found.fitted, found.reason, found.images) == (True, "", 200)


def scaled(seed: int, scale: float, classes: int = 5, n: int = 300):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    logits += torch.randn(n, classes, generator=generator).double()
    return logits, torch.multinomial((logits / scale).softmax(1), 1, generator=generator)[:, 0]


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**16), scale=st.floats(0.3, 20), factor=st.floats(0.3, 3))
def test_properties(seed: int, scale: float, factor: float) -> None:
    """The slope is zero there, never worse than T = 1, and scaling logits scales T."""
    logits, y = scaled(seed, scale, n=120)
    found = fit_temperature(logits, y)
    assert found.fitted
    leaf = torch.tensor(1 / found.value, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(leaf * logits, y)
    (slope,) = torch.autograd.grad(loss, leaf)
    assert abs(float(slope)) < 1e-9 * scale
    assert float(loss.detach()) <= nll(logits, y) + 1e-15
    other = fit_temperature(factor * logits, y)
    assert other.value == pytest.approx(factor * found.value, rel=1e-8)


@pytest.mark.parametrize(
    ("logits", "y", "reason"),
    [
        (*two_classes(50, 49, 1.0), "99 validation images, fewer than 100: T stays 1"),
        (*two_classes(200, 0, 1.0), "all of 200 validation images are right"),
        (*two_classes(100, 100, 1.0), "no better than a uniform"),  # even odds: infinite
        (torch.zeros(200, 3), torch.arange(200) % 3, "no better than a uniform"),
        (*two_classes(199, 1, 0.01), "the best T is below 0.01"),
        (*two_classes(190, 10, 1e3), "the best T is above 100: T stays 1"),  # 1000 / ln 19
    ],
)
def test_where_none_is_fitted(logits: torch.Tensor, y: torch.Tensor, reason: str) -> None:
    found = fit_temperature(logits, y)
    assert (found.value, found.fitted, found.images) == (1.0, False, len(y))
    assert reason in found.reason and found.reason.endswith("T stays 1")

"""The fitted temperature: by hand, beside scipy, and where none can be fitted."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from roli_fast.analysis import temperature
from roli_fast.analysis.calibration import fit_temperature, nll


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


def drawn(seed: int, scale: float, classes: int = 5, n: int = 300):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    logits += torch.randn(n, classes, generator=generator).double()
    return logits, torch.multinomial((logits / scale).softmax(1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_as_scipy(scale: float) -> None:
    logits, y = drawn(0, scale)
    found = fit_temperature(logits, y)
    other = minimize_scalar(
        lambda b: nll(b * logits, y), bounds=(1e-2, 1e2), method="bounded", options={"xatol": 1e-10}
    )
    assert found.fitted and 1 / found.value == pytest.approx(other.x, rel=1e-5)
    assert nll(logits / found.value, y) <= other.fun + 1e-12


@given(seed=st.integers(0, 2**16), scale=st.floats(0.3, 20), factor=st.floats(0.3, 3))
def test_properties(seed: int, scale: float, factor: float) -> None:
    """The slope is zero there, never worse than T = 1, and scaling logits scales T."""
    logits, y = drawn(seed, scale, n=120)
    found = fit_temperature(logits, y)
    assert found.fitted
    leaf = torch.tensor(1 / found.value, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(leaf * logits, y)
    (slope,) = torch.autograd.grad(loss, leaf)
    assert abs(float(slope)) < 1e-9 * scale
    assert float(loss.detach()) <= nll(logits, y) + 1e-15
    scaled = fit_temperature(factor * logits, y)
    assert scaled.value == pytest.approx(factor * found.value, rel=1e-8)


def test_it_looks_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, slope = [], temperature._slope
    monkeypatch.setattr(
        temperature, "_slope", lambda *given: (looks.append(given[2]), slope(*given))[1]
    )
    for scale in (0.05, 1.0, 60.0):
        looks.clear()
        assert fit_temperature(*drawn(1, scale)).fitted
        assert len(looks) <= 30
    looks.clear()
    fit_temperature(*two_classes(199, 1, 300.0))
    assert len(looks) < 50


def test_an_already_fitted_set_needs_no_temperature() -> None:
    logits, y = drawn(2, 4.0)
    first = fit_temperature(logits, y)
    assert fit_temperature(logits / first.value, y).value == pytest.approx(1, rel=1e-10)


def test_fp32_logits_give_the_fp64_answer() -> None:
    logits, y = drawn(3, 2.0)
    found = fit_temperature(logits.float(), y)
    assert found.value == fit_temperature(logits.float().double(), y).value


@pytest.mark.parametrize(
    ("logits", "y", "reason"),
    [
        (*two_classes(50, 49, 1.0), "99 validation images, fewer than 100: T stays 1"),
        (*two_classes(200, 0, 1.0), "all of 200 validation images are right"),
        (*two_classes(0, 200, 1.0), "no better than a uniform"),
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

"""Logistic regression against a minimum worked by hand and scikit-learn's."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression as Reference
from torch import Tensor

from roli_fast.errors import ArgumentError
from roli_fast.train import linear_probe
from roli_fast.train.linear_probe import LogisticRegression, best, score, strongest_first


def problem(classes: int = 3, count: int = 60) -> tuple[Tensor, Tensor]:
    """Features of unlike scales, far from the origin, on which classes overlap."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(count) % classes
    centres = torch.randn(classes, 5, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    scales = torch.tensor([10.0, 1, 1, 0.3, 0.1])
    return (centres[y] + noise) * scales + 4.0, y


def test_two_points_by_hand() -> None:
    """x = 1 of class 0 and x = -1 of class 1: by symmetry W = (w, -w) and b = 0. The objective is
    log(1 + exp(-2w)) + strength w^2, whose slope is 0 at w = 1 for strength sigmoid(-2)."""
    strength = 1 / (1 + math.exp(2))
    found = LogisticRegression(torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]), 2).solve(
        strength, tolerance=1e-10
    )
    torch.testing.assert_close(found.weight, torch.tensor([[1.0], [-1.0]]).double())
    torch.testing.assert_close(found.bias, torch.zeros(2).double())
    assert found.converged and found.norm == pytest.approx(math.sqrt(2))
    assert found.loss == pytest.approx(math.log(1 + math.exp(-2)))


@pytest.mark.parametrize("strength", [1.0, 1e-3])
@pytest.mark.parametrize("classes", [2, 3])
def test_scikit_learn_finds_the_same(classes: int, strength: float) -> None:
    """Its C multiplies the sum of the losses. Newton's method is another way to the minimum."""
    features, y = problem(classes)
    repeated = torch.cat([features, features[:, :1]], dim=1)  # a singular covariance
    found = LogisticRegression(repeated, y, classes).solve(strength, tolerance=1e-10)
    pair = 2 if classes == 2 else 1  # it has one vector for two classes, of which ours are halves
    c = pair / (strength * len(y))
    other = Reference(C=c, solver="newton-cg", tol=1e-10, max_iter=500)
    other.fit(repeated.numpy(), y.numpy())
    weight, bias = torch.from_numpy(other.coef_), torch.from_numpy(other.intercept_)
    if classes == 2:
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    torch.testing.assert_close(found.weight, weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.bias, bias - bias.mean(), rtol=1e-4, atol=1e-4)
    shares = torch.cat(list(found.logits(repeated))).softmax(1)
    theirs = torch.from_numpy(other.predict_proba(repeated.numpy()))
    torch.testing.assert_close(shares, theirs, rtol=1e-4, atol=1e-5)


def test_the_minimum_is_one_whatever_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """From another solution, in parts of 7 rows, of moved features: only the bias moves."""
    features, y = problem()
    straight = LogisticRegression(features, y, 3).solve(0.01, tolerance=1e-9)
    monkeypatch.setattr(linear_probe, "ROWS", 7)
    moved = LogisticRegression(features + 2.0, y, 3)
    warm = moved.solve(0.01, start=moved.solve(1.0), tolerance=1e-9)
    torch.testing.assert_close(warm.weight, straight.weight, rtol=1e-6, atol=1e-8)
    shift = straight.bias - 2.0 * straight.weight.sum(1)
    torch.testing.assert_close(warm.bias, shift, rtol=1e-6, atol=1e-7)
    assert score(warm, features + 2.0, y) == pytest.approx(score(straight, features, y))
    again = moved.solve(0.01, start=warm)
    assert again.iterations <= 1 and again.loss == pytest.approx(warm.loss, rel=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_the_same() -> None:
    features, y = problem()
    here = LogisticRegression(features, y, 3).solve(0.01, tolerance=1e-9)
    there = LogisticRegression(features.cuda(), y.cuda(), 3).solve(0.01, tolerance=1e-9)
    assert there.weight.is_cuda and there.bias.is_cuda
    torch.testing.assert_close(there.weight.cpu(), here.weight, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(there.bias.cpu(), here.bias, rtol=1e-6, atol=1e-7)


def test_a_weaker_penalty_has_a_larger_head_and_a_smaller_loss() -> None:
    features, y = problem()
    found = [LogisticRegression(features, y, 3).solve(s) for s in strongest_first((0.01, 1.0, 0.1))]
    assert [f.strength for f in found] == [1.0, 0.1, 0.01]
    norms, losses = [f.norm for f in found], [f.loss for f in found]
    assert norms == sorted(norms) and losses == sorted(losses, reverse=True)


def test_too_few_iterations_are_told() -> None:
    features, y = problem()
    assert not LogisticRegression(features, y, 3).solve(1e-3, iterations=2).converged


def test_the_score_by_hand() -> None:
    """Logits (x, -x): at x = 1 class 0 has 1 / (1 + e^-2)."""
    found = LogisticRegression(torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]), 2).solve(
        1 / (1 + math.exp(2)), tolerance=1e-10
    )
    accuracy, nll = score(found, torch.tensor([[1.0], [1.0]]), torch.tensor([0, 1]))
    assert accuracy == 0.5
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert nll == pytest.approx((right + wrong) / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ([(0.5, 1.0), (0.7, 9.0), (0.6, 0.1)], 1),
        ([(0.7, 2.0), (0.7, 1.0), (0.6, 0.1)], 1),
        ([(0.7, 1.0), (0.7, 1.0)], 0),
    ],
)
def test_the_choice(scores: list[tuple[float, float]], chosen: int) -> None:
    assert best(scores) == chosen


@pytest.mark.parametrize(
    ("features", "y", "words"),
    [
        (torch.tensor([[1.0], [float("nan")]]), [0, 1], "`features`: expected finite"),
        (
            torch.ones(2, 1),
            [0, 0],
            "`y`: expected training images of every class, got none of class 1",
        ),
        (torch.ones(3, 1), [0, 1], "`features`"),
    ],
)
def test_bad_input_is_named(features: Tensor, y: list[int], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        LogisticRegression(features, torch.tensor(y), 2)


@pytest.mark.parametrize("strength", [0.0, -1.0, float("inf")])
def test_a_penalty_is_needed(strength: float) -> None:
    features, y = problem()
    with pytest.raises(ArgumentError, match="strength"):
        LogisticRegression(features, y, 3).solve(strength)

"""Logistic regression against a minimum worked by hand, and by another way to it."""

import math
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from small import records, run_small, small
from torch import Tensor

from roli_fast.errors import ArgumentError
from roli_fast.train.linear_probe import solve
from roli_fast.train.run_directory import RunStage


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
    log(1 + exp(-2w)) + strength w^2, whose slope is 0 at w = 1 for strength sigmoid(-2). Then at
    x = 1 class 0 has 1 / (1 + e^-2)."""
    x, strength = torch.tensor([[1.0], [-1.0]]), 1 / (1 + math.exp(2))
    (found,) = solve(x, torch.tensor([0, 1]), 2, [strength], tolerance=1e-10)
    torch.testing.assert_close(found.weight, x.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.bias, torch.zeros(2).double())
    assert found.converged
    accuracy, nll = found.score(torch.ones(2, 1), torch.tensor([0, 1]))
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert accuracy == 0.5 and nll == pytest.approx((right + wrong) / 2, rel=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_newton_s_method_finds_the_same(classes: int) -> None:
    """The strongest first, each begun where the last ended; features that were moved move the bias
    alone."""
    features, y = problem(classes)
    found = solve(features, y, classes, [1e-3, 1.0], tolerance=1e-9, iterations=5000)
    assert not solve(features, y, classes, [1e-3], iterations=2)[0].converged
    moved = solve(features + 2.0, y, classes, [1e-3], tolerance=1e-9, iterations=5000)
    torch.testing.assert_close(moved[0].weight, found[1].weight, rtol=1e-5, atol=1e-6)
    for own, strength in zip(found, [1.0, 1e-3], strict=True):
        assert own.strength == strength and own.converged
        pair = 2 if classes == 2 else 1  # of two classes it has the difference
        c = pair / (strength * len(y))
        other = LogisticRegression(C=c, solver="newton-cg", tol=1e-10, max_iter=500)
        other.fit(features.numpy(), y.numpy())
        weight, bias = torch.from_numpy(other.coef_), torch.from_numpy(other.intercept_)
        if classes == 2:
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        torch.testing.assert_close(own.weight, weight, rtol=1e-4, atol=1e-5)
        shift = own.bias - own.bias.mean() - bias + bias.mean()
        torch.testing.assert_close(shift, torch.zeros_like(shift), rtol=0, atol=1e-4)


def test_a_rate_of_null_is_one_over_the_features_squared_norm(tmp_path: Path) -> None:
    """To two digits. No warm-up and no milestone: the rate recorded is the peak."""
    flags = ["--methods=probe", "--probe.epochs=1", "--probe.warmup_epochs=0"]
    flags += ["--probe.optimizer.name=sgd", "--probe.optimizer.lr=null", "--probe.head_scale=3"]
    flags += ["--probe.schedule=step", "--probe.schedule.milestones=0.999"]
    run_small(tmp_path / "run", *flags)
    experiment = small(*flags)
    splits = experiment.data.load()
    model = RunStage(experiment, splits, tmp_path / "run", 0, "probe", 1).starting_model().eval()
    x = splits.train.plain().batch(torch.arange(len(splits.train))).x
    norm = model.features(x).detach().double().square().sum(1).mean()
    (row,) = records(tmp_path / "run")
    assert row["lr"] == pytest.approx(1 / float(norm), rel=0.05)
    with pytest.raises(ArgumentError, match="`ranli.optimizer.lr`: .*more than the head trains"):
        small("--ranli.optimizer.lr=null", "--ranli.optimizer.name=sgd")
    with pytest.raises(ArgumentError, match="`probe.optimizer.lr`: .*with adamw, got null"):
        small("--probe.optimizer.lr=null", "--probe.optimizer.name=adamw")


def test_a_class_without_images_is_named() -> None:
    with pytest.raises(ArgumentError, match="`y`.*every class, got none of class 1"):
        solve(torch.ones(2, 1), torch.tensor([0, 0]), 2, [1.0])

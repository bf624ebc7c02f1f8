"""Distances between features: by hand, by their definitions in loops, and by what leaves them."""

import logging
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from sklearn.feature_selection import f_classif
from torch import Tensor

from roli_fast.analysis import (
    class_separation,
    feature_drift,
    linear_cka,
    pairwise_cosine,
    robust_drift,
)
from roli_fast.errors import ArgumentError, ArgumentTypeError

SHAPES = [(9, 4), (5, 12), (40, 3)]
"""More samples than dimensions, fewer, and many more."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rotation(size: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(normal(size, size, seed=seed)).Q


def test_drift_by_hand() -> None:
    before = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    after = torch.tensor([[0.0, 8.0], [0.0, -1.0]])
    found = feature_drift(before, after)
    assert found.absolute == pytest.approx((5 + 3) / 2)
    assert found.relative == pytest.approx(4 / 3.5)
    assert found.cosine == pytest.approx((32 / 40 - 1) / 2)
    assert found.cka == pytest.approx(1)  # two points are always a line
    moved = robust_drift(before, after)
    assert (moved.absolute, moved.relative) == (found.absolute, found.relative)


def test_cka_by_hand() -> None:
    x = torch.tensor([[1.0], [0.0], [-1.0]])
    assert linear_cka(x, torch.tensor([[1.0], [1.0], [-2.0]])) == pytest.approx(9 / (2 * 6))
    assert linear_cka(x, torch.tensor([[6.0], [3.0], [6.0]])) == pytest.approx(0, abs=1e-15)


def test_separation_by_hand() -> None:
    phi, y = torch.tensor([[0.0], [4.0], [2.0], [6.0]]), torch.tensor([0, 7, 0, 7])
    assert class_separation(phi, y) == pytest.approx((4 * 4) / (4 * 1))
    uneven = torch.tensor([[0.0], [2.0], [4.0]])  # means 1 and 4 about 2
    assert class_separation(uneven, torch.tensor([0, 0, 1])) == pytest.approx((2 * 1 + 4) / 2)


def test_pairwise_cosine_by_hand() -> None:
    phi = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 3.0]])
    assert pairwise_cosine(phi) == pytest.approx(2 * math.sqrt(0.5) / 3)
    with_zero = torch.cat([phi, torch.zeros(1, 2)])
    assert pairwise_cosine(with_zero) == pytest.approx(pairwise_cosine(phi))


@pytest.mark.parametrize("shape", SHAPES)
def test_drift_is_its_definition(shape: tuple[int, int]) -> None:
    before, after = normal(*shape), normal(*shape, seed=1)
    a, b = before.numpy(), after.numpy()
    found = feature_drift(before, after)
    far = [np.linalg.norm(q - p) for p, q in zip(a, b, strict=True)]
    assert found.absolute == pytest.approx(np.mean(far), rel=1e-12)
    relative = np.mean(far) / np.mean([np.linalg.norm(p) for p in a])
    assert found.relative == pytest.approx(relative, rel=1e-12)
    cosines = [p @ q / np.linalg.norm(p) / np.linalg.norm(q) for p, q in zip(a, b, strict=True)]
    assert found.cosine == pytest.approx(np.mean(cosines), rel=1e-12)
    assert found.cka == linear_cka(before, after)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("other", [2, 7])
def test_cka_is_its_definition_by_kernels(shape: tuple[int, int], other: int) -> None:
    x, y = normal(*shape) + 3, normal(shape[0], other, seed=1) - 1
    count = shape[0]
    centre = torch.eye(count, dtype=torch.float64) - 1 / count

    def hsic(k: Tensor, m: Tensor) -> Tensor:
        return (k @ centre @ m @ centre).trace()

    k, m = x @ x.T, y @ y.T
    expected = hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()
    assert linear_cka(x, y) == pytest.approx(expected.item(), rel=1e-11)


@pytest.mark.parametrize("shape", SHAPES)
def test_debiased_cka_is_that_of_unbiased_hsic(shape: tuple[int, int]) -> None:
    x, y = normal(*shape), normal(*shape, seed=1) + 2

    def hsic(k: Tensor, m: Tensor) -> float:
        """Song et al. 2012, the unbiased estimator."""
        n = len(k)
        k, m = k.clone().fill_diagonal_(0), m.clone().fill_diagonal_(0)
        crossed = (k @ m).sum() / (n - 2)
        sums = k.sum() * m.sum() / (n - 1) / (n - 2)
        return (((k @ m).trace() + sums - 2 * crossed) / (n * (n - 3))).item()

    k, m = x @ x.T, y @ y.T
    expected = hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))
    assert linear_cka(x, y, debiased=True) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_unrelated_features_look_alike_unless_debiased() -> None:
    pairs = [(normal(20, 200, seed=s), normal(20, 200, seed=99 + s)) for s in range(20)]
    biased = [linear_cka(x, y) for x, y in pairs]
    debiased = [linear_cka(x, y, debiased=True) for x, y in pairs]
    assert min(biased) > 0.8
    said = linear_cka(normal(64, 768), normal(64, 768, seed=1))  # on the report's page
    assert said == pytest.approx(0.93, abs=0.01)
    assert abs(np.mean(debiased)) < 0.05 and min(debiased) < 0 < max(debiased)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(4, 12),
    st.integers(1, 9),
    st.floats(1e-3, 1e3),
    st.booleans(),
    st.integers(0, 1000),
)
def test_cka_knows_neither_rotation_nor_scale_nor_shift(
    count: int, size: int, scale: float, debiased: bool, seed: int
) -> None:
    x, y = normal(count, size, seed=seed), normal(count, size, seed=seed + 1)
    turned = scale * x @ rotation(size, seed) + 5
    assert linear_cka(x, turned, debiased=debiased) == pytest.approx(1, abs=1e-9)
    own = linear_cka(x, y, debiased=debiased)
    assert linear_cka(turned, y, debiased=debiased) == pytest.approx(own, abs=1e-9)
    assert linear_cka(y, x, debiased=debiased) == pytest.approx(own, abs=1e-12)
    assert own <= 1 + 1e-12 and (debiased or own >= 0)


def test_cka_sees_more_than_a_rotation() -> None:
    x = normal(30, 4)
    stretched = x * torch.tensor([10.0, 1, 1, 1])
    assert linear_cka(x, stretched) < 0.8


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 12), st.integers(1, 9), st.floats(1e-3, 1e3), st.integers(0, 1000))
def test_drift_scales_and_turns_with_the_features(
    count: int, size: int, scale: float, seed: int
) -> None:
    before, after = normal(count, size, seed=seed), normal(count, size, seed=seed + 1)
    turn, plain = scale * rotation(size, seed), feature_drift(before, after)
    turned = feature_drift(before @ turn, after @ turn)
    assert turned.absolute == pytest.approx(scale * plain.absolute, rel=1e-9)
    assert turned.relative == pytest.approx(plain.relative, rel=1e-9)
    assert turned.cosine == pytest.approx(plain.cosine, abs=1e-9)
    longer = feature_drift(before, before * (1 + scale))
    assert longer.cosine == pytest.approx(1) and longer.relative == pytest.approx(scale)
    still = feature_drift(before, before)
    assert (still.absolute, still.relative) == (0, 0)
    assert still.cosine == pytest.approx(1) and still.cka == pytest.approx(1)


def test_separation_is_anovas_and_the_scatters_add_up() -> None:
    phi, y = normal(30, 1), torch.arange(30) % 4
    f = f_classif(phi.numpy(), y.numpy())[0][0]
    assert class_separation(phi, y) == pytest.approx(f * (4 - 1) / (30 - 4), rel=1e-10)
    wide = normal(30, 6)
    total = (wide - wide.mean(0)).square().sum().item()
    within = sum((wide[y == c] - wide[y == c].mean(0)).square().sum().item() for c in range(4))
    assert class_separation(wide, y) == pytest.approx((total - within) / within, rel=1e-10)
    turned = 7 * wide @ rotation(6) - 3
    assert class_separation(turned, y + 5) == pytest.approx(class_separation(wide, y), rel=1e-10)


def test_labels_at_random_separate_as_much_as_said() -> None:
    found = [class_separation(normal(30, 50, seed=s), torch.arange(30) % 4) for s in range(10)]
    assert np.mean(found) == pytest.approx((4 - 1) / (30 - 4), rel=0.05)


@pytest.mark.parametrize("shape", SHAPES)
def test_pairwise_cosine_is_the_mean_over_pairs(shape: tuple[int, int]) -> None:
    phi = normal(*shape) + 1
    for centred in (False, True):
        rows = (phi - phi.mean(0) if centred else phi).numpy()
        expected = np.mean(1 - pdist(rows, "cosine"))
        assert pairwise_cosine(phi, centred=centred) == pytest.approx(expected, abs=1e-12)


def test_centred_cosines_of_one_length_say_nothing() -> None:
    angles = torch.tensor([0.1, 2.0, 4.5])
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    circle = torch.cat([circle, -circle])  # centred, of length one
    assert pairwise_cosine(circle, centred=True) == pytest.approx(-1 / 5)


def test_low_precisions_are_widened_and_nothing_is_changed() -> None:
    before, after = normal(6, 4).half(), normal(6, 4, seed=1).half().requires_grad_()
    copies = before.clone(), after.detach().clone()
    assert feature_drift(before, after) == feature_drift(before.double(), after.double())
    assert torch.equal(before, copies[0]) and torch.equal(after, copies[1])
    assert feature_drift(before.half() * 1e4, after.half()).absolute < math.inf


def test_what_is_not_defined_is_nan_or_infinite() -> None:
    same, some = torch.ones(5, 3), normal(5, 3)
    assert math.isnan(linear_cka(same, some))
    assert math.isnan(feature_drift(torch.zeros(5, 3), some).cosine)
    assert feature_drift(torch.zeros(5, 3), some).relative == math.inf
    assert math.isnan(robust_drift(torch.zeros(5, 3), torch.zeros(5, 3)).relative)
    y = torch.tensor([0, 0, 1, 1, 1])
    assert class_separation(torch.stack([y, y], 1).double(), y) == math.inf
    assert class_separation(some, torch.zeros(5, dtype=torch.int64)) < 1e-30
    assert math.isnan(class_separation(same, y))
    assert math.isnan(pairwise_cosine(some[:1]))
    assert math.isnan(pairwise_cosine(same, centred=True))


def test_wrong_features_are_named() -> None:
    good = normal(5, 3)
    with pytest.raises(ArgumentError, match=r"`after`: expected the shape \(5, 3\).*\(4, 3\)"):
        feature_drift(good, good[:4])
    with pytest.raises(ArgumentError, match=r"`adversarial`: .*\(5, 2\)"):
        robust_drift(good, good[:, :2])
    with pytest.raises(ArgumentError, match="`second`: expected 5 samples"):
        linear_cka(good, good[:4])
    with pytest.raises(ArgumentError, match="at least 4 samples to debias, got 3"):
        linear_cka(good[:3], good[:3], debiased=True)
    with pytest.raises(ArgumentError, match=r"`before`: expected features \(N, D\), got \(5,\)"):
        feature_drift(good[:, 0], good[:, 0])
    with pytest.raises(ArgumentError, match=r"`phi`: expected features \(N, D\), got \(0, 3\)"):
        pairwise_cosine(good[:0])
    with pytest.raises(ArgumentError, match="`after`: expected finite features"):
        feature_drift(good, good / 0)
    with pytest.raises(ArgumentTypeError, match="`phi`: expected a floating-point tensor.*int64"):
        pairwise_cosine(torch.ones(3, 2, dtype=torch.int64))
    with pytest.raises(ArgumentTypeError, match="`first`: .*got list"):
        linear_cka([[1.0]], good)  # pyright: ignore[reportArgumentType]
    for y in (torch.zeros(4, dtype=torch.int64), torch.zeros(5)):
        with pytest.raises(ArgumentError, match=r"`y`: expected integer labels of shape \(5,\)"):
            class_separation(good, y)


def test_each_says_what_it_costs(caplog: pytest.LogCaptureFixture) -> None:
    x, y = normal(50, 8), torch.arange(50) % 3
    with caplog.at_level(logging.INFO, "roli_fast.analysis"):
        feature_drift(x, x)
        robust_drift(x, x)
        linear_cka(x, x)
        class_separation(x, y)
        pairwise_cosine(x)
    said = [line.split(":")[0] for line in caplog.messages]
    names = ["feature drift", "robust drift", "linear CKA", "class separation", "pairwise cosine"]
    assert said == names  # each once

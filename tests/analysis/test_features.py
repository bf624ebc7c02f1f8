"""Measures of features, heads and logits: by hand, by their definitions in loops, and by what
leaves them."""

import math

import pytest
import torch
from tiny_models import images
from torch import Tensor, nn

from roli_fast.analysis import (
    class_separation,
    feature_drift,
    head_norms,
    linear_cka,
    pairwise_cosine,
    residual_size,
    robust_drift,
)
from roli_fast.analysis.features import residual
from roli_fast.errors import ArgumentError
from roli_fast.losses import cross_entropy

SHAPES = [(9, 4), (5, 12), (40, 3)]
"""More samples than dimensions, fewer, and many more."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


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


def test_unrelated_features_look_alike() -> None:
    said = linear_cka(normal(64, 768), normal(64, 768, seed=1))  # on the report's page
    assert said == pytest.approx(0.93, abs=0.01)


def head_of(weight: list[list[float]], bias: list[float] | None) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias))
    return layer


def test_norms_by_hand() -> None:
    found = head_norms(head_of([[3, 4], [0, 0], [0, -2]], [0, 3, 4]))
    assert found.norm == pytest.approx(math.sqrt(29))
    assert found.rows.tolist() == pytest.approx([5, 0, 2])
    assert found.bias == pytest.approx(5)
    half = head_norms(head_of([[3, 4]], None).half())
    assert (half.norm, half.bias, half.rows.dtype) == (5, 0, torch.float32)
    assert not half.rows.requires_grad


def test_residuals_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0], [200.0, 0.0], [200.0, 0.0]])
    found = residual_size(logits, torch.tensor([0, 1, 0, 1]))
    assert found.tolist() == pytest.approx([0.75 * 2**0.5, 0.5 * 2**0.5, 0, 2**0.5])


def test_a_residual_is_minus_the_gradient_of_the_cross_entropy() -> None:
    logits = (5 * images(6, 4, seed=3)).double().requires_grad_()
    y = torch.arange(6) % 4
    cross_entropy(logits, y).sum().backward()
    assert logits.grad is not None
    assert torch.allclose(residual(logits.detach(), y), -logits.grad, atol=1e-15)
    assert torch.allclose(residual(logits.detach(), y).sum(1), torch.zeros(6).double(), atol=1e-15)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"`features`: expected a matrix.*\(2, 3, 4\).*Pool"):
        class_separation(images(2, 3, 4), torch.zeros(2))
    with pytest.raises(ArgumentError, match=r"two matrices of one shape"):
        feature_drift(images(2, 3), images(1, 3))

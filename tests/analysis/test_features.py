"""Measures of features, heads and logits: by hand, by their definitions in loops, and by what
leaves them."""

import math

import numpy as np
import pytest
import torch
from text_encoder import TextEncoder
from tiny_models import images, tiny, untouched
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
from roli_fast.errors import ArgumentError, ArgumentTypeError
from roli_fast.losses import cross_entropy

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
    expected = [[1, 0, -0.8], [0, 0, 0], [-0.8, 0, 1]]
    assert torch.allclose(found.cosines, torch.tensor(expected), atol=1e-7)


def test_a_random_head_has_the_papers_norm() -> None:
    """0.02 sqrt(C h): .951 measured for C = 3, h = 768 (Tomihari & Sato 2024, table 1)."""
    layer = nn.Linear(768, 3)
    nn.init.normal_(layer.weight, std=0.02, generator=torch.Generator().manual_seed(0))
    assert head_norms(layer).norm == pytest.approx(0.951, abs=0.03)


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_norms_scale_and_cosines_do_not(scale: float) -> None:
    model = tiny()
    with untouched(model):
        plain = head_norms(model.head)
    with torch.no_grad():
        model.head.weight.mul_(scale)
    scaled = head_norms(model.head)
    assert scaled.norm == pytest.approx(scale * plain.norm, rel=1e-6)
    assert torch.allclose(scaled.rows, scale * plain.rows)
    assert torch.allclose(scaled.cosines, plain.cosines, atol=1e-6)
    assert scaled.rows.square().sum().sqrt().item() == pytest.approx(scaled.norm, rel=1e-6)


def test_a_head_without_a_bias_in_half() -> None:
    found = head_norms(head_of([[3, 4]], None).half())
    assert (found.norm, found.bias, found.rows.dtype) == (5, 0, torch.float32)
    assert not found.rows.requires_grad


def test_no_linear_layer() -> None:
    with pytest.raises(ArgumentTypeError, match="an nn.Linear, got TextEncoder"):
        head_norms(TextEncoder())  # pyright: ignore[reportArgumentType]


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
    shifted = residual_size(logits.detach() + 3, y)
    assert torch.allclose(shifted, residual_size(logits.detach(), y))


def test_short_logits_are_widened() -> None:
    logits = images(3, 4).bfloat16()
    y = torch.zeros(3, dtype=torch.int64)
    assert torch.equal(residual_size(logits, y), residual_size(logits.float(), y))


def test_wrong_logits_and_labels() -> None:
    y = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ArgumentError, match=r"`logits`: expected shape \(N, C\), got \(3,\)"):
        residual_size(images(3), y)
    with pytest.raises(ArgumentError, match=r"`y`: expected labels in \[0, 2\)"):
        residual_size(images(3, 2), y + 2)
    with pytest.raises(ArgumentError, match="`y`"):
        residual_size(images(4, 2), y)

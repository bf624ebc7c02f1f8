"""Norms of a head, and what is left to learn."""

import logging
import math

import pytest
import torch
from text_encoder import TextEncoder
from tiny_models import images, tiny, untouched
from torch import nn

from roli_fast.analysis import head_norms, residual_size
from roli_fast.analysis.residual import residual
from roli_fast.errors import ArgumentError, ArgumentTypeError
from roli_fast.losses import cross_entropy


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


def test_each_says_what_it_costs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "roli_fast.analysis"):
        head_norms(tiny().head)
        residual_size(images(4, 2), torch.zeros(4, dtype=torch.int64))
    assert [line.split(":")[0] for line in caplog.messages] == ["head norms", "residual size"]

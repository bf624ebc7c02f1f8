"""Optimiser groups and weight decay."""

import math
from typing import Literal

import pytest
import torch
from tiny_models import tiny
from torch import Tensor, nn

from roli_fast.errors import ArgumentError
from roli_fast.train.optim import Optimizer, parameter_groups


class Net(nn.Module):
    """A matrix, a bias, a norm, a kernel, and a position table that asks for no decay."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(2)
        self.conv = nn.Conv2d(1, 1, 2)
        self.pos_embed = nn.Parameter(torch.ones(1, 4, 2))

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed"}


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Net()


DECAYED = ("backbone.linear.weight", "backbone.conv.weight")


def test_all_decay_where_it_is_asked_for() -> None:
    """E-AT's and RAMP's fine-tuning: one group, norms, biases and tables in it."""
    model = Outer()
    names = [name for name, _ in model.named_parameters()]
    (group,) = Optimizer("sgd", weight_decay=0.3, decay="all").build(model, names).param_groups
    assert group["weight_decay"] == 0.3
    assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters()}
    few = parameter_groups(model, ["backbone.norm.bias"], weight_decay=0.3, decay="all")
    assert [len(g["params"]) for g in few] == [1], "of those that train"


def by_hand(weight: Tensor, grads: list[Tensor], optimizer: Optimizer, *, decay: float) -> Tensor:
    """The formulas of AdamW (Loshchilov & Hutter 2019, algorithm 2, decay first as torch has it)
    and of SGD with momentum, in fp64."""
    w = weight.double()
    first, second = torch.zeros_like(w), torch.zeros_like(w)
    for step, grad in enumerate((g.double() for g in grads), 1):
        if optimizer.name == "sgd":
            first = optimizer.momentum * first + grad + decay * w
            w = w - optimizer.lr * first
            continue
        a, b = optimizer.betas
        w = w * (1 - optimizer.lr * decay)
        first, second = a * first + (1 - a) * grad, b * second + (1 - b) * grad**2
        root = (second / (1 - b**step)).sqrt() + optimizer.eps
        w = w - optimizer.lr * first / (1 - a**step) / root
    return w


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_five_updates_in_fp64(name: Literal["adamw", "sgd"], kind: torch.dtype) -> None:
    """Decay reaches matrices and kernels alone."""
    model = Outer().to(kind)
    config = Optimizer(name, lr=0.03, weight_decay=0.2)
    parameters = dict(model.named_parameters())
    optimizer = config.build(model, parameters)
    before = {n: p.detach().clone() for n, p in parameters.items()}
    random = torch.Generator().manual_seed(0)
    grads = {n: torch.randn(5, *p.shape, generator=random).to(kind) for n, p in parameters.items()}
    for step in range(5):
        for n, parameter in parameters.items():
            parameter.grad = grads[n][step].clone()
        optimizer.step()
    for n, parameter in parameters.items():
        decay = 0.2 if n in DECAYED else 0.0
        expected = by_hand(before[n], list(grads[n]), config, decay=decay)
        error = (parameter.detach().double() - expected).abs().max()
        assert error <= (4e-7 if kind == torch.float32 else 1e-15), n


def test_the_head_has_a_rate_of_its_own() -> None:
    """In both kinds of groups; the backbone's tensors come first."""
    model = tiny("vit_tiny_patch16_224")
    names = [name for name, _ in model.named_parameters()]
    built = Optimizer("sgd", lr=0.1, head_lr=0.7, weight_decay=0.3).build(model, names)
    found = [(g["lr"], g["weight_decay"], len(g["params"])) for g in built.param_groups]
    assert [row[:2] for row in found] == [(0.1, 0.3), (0.1, 0.0), (0.7, 0.3), (0.7, 0.0)]
    assert found[2][2] == found[3][2] == 1 and sum(row[2] for row in found) == len(names)
    with pytest.raises(ArgumentError, match="`head_lr`: expected null beside scheduled"):
        Optimizer(head_lr=0.1, scheduled="decayed")


@pytest.mark.parametrize("lr", [-1.0, math.inf])
def test_bad_rates_are_named(lr: float) -> None:
    with pytest.raises(ArgumentError, match="`lr`"):
        Optimizer(lr=lr)

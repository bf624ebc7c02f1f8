"""Optimiser groups and weight decay."""

from typing import Any, Literal

import pytest
import torch
from tiny_models import tiny
from torch import Tensor, nn

from roli_fast.errors import ArgumentError
from roli_fast.train.optim import Optimizer, parameter_groups


class Net(nn.Module):
    """A matrix, a bias, a norm, a kernel, a position table that asks for no decay, and one with
    "bias" in its name."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(2)
        self.conv = nn.Conv2d(1, 1, 2)
        self.pos_embed = nn.Parameter(torch.ones(1, 4, 2))
        self.position_bias_table = nn.Parameter(torch.ones(3, 2))

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed"}


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Net()


DECAYED = ("linear.weight", "conv.weight", "position_bias_table")


def test_all_decay_where_it_is_asked_for() -> None:
    """E-AT's and RAMP's fine-tuning: one group, norms, biases and tables in it."""
    model = Outer()
    names = [name for name, _ in model.named_parameters()]
    (group,) = Optimizer("sgd", weight_decay=0.3, decay="all").build(model, names).param_groups
    assert group["weight_decay"] == 0.3
    assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters()}
    few = parameter_groups(model, ["backbone.norm.bias"], weight_decay=0.3, decay="all")
    assert [len(g["params"]) for g in few] == [1], "of those that train"


def test_the_release_decays_whatever_lacks_bias_in_its_name() -> None:
    """By 0.01, whatever is asked for."""
    model = Net()
    rule = Optimizer(lr=0.1, weight_decay=0.3, eps=1e-6, decay="release")
    groups = rule.build(model, [name for name, _ in model.named_parameters()]).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    decay = {names[id(p)]: g["weight_decay"] for g in groups for p in g["params"]}
    assert {(g["lr"], g["eps"]) for g in groups} == {(0.1, 1e-6)} and len(decay) == len(names)
    expected = {"linear.weight", "norm.weight", "conv.weight", "pos_embed"}
    assert {name for name, own in decay.items() if own == 0.01} == expected


@pytest.mark.parametrize(
    ("name", "scheduled"), [("sgd", "decayed"), ("adamw", "decayed"), ("sgd", "all")]
)
def test_what_does_not_follow_the_schedule(name: Any, scheduled: Any) -> None:
    """Only the matrices do; a gradient of 1 moves a bias by 1 in SGD, and by 1.9 the next time."""
    model = nn.Linear(2, 2)
    rule = Optimizer(name, lr=0.05, weight_decay=5e-4, scheduled=scheduled)
    optimizer, before = rule.build(model, ["weight", "bias"]), model.bias.detach().clone()
    for _ in range(2):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 / 100
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == [0.0005, 1.0 if scheduled == "decayed" else 0.0005]
    if (name, scheduled) == ("sgd", "decayed"):
        torch.testing.assert_close(before - model.bias, torch.full((2,), 2.9))


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
        decay = 0.2 if n.removeprefix("backbone.") in DECAYED else 0.0
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

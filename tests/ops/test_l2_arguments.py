"""What the L2 and APGD ops and select_best_ refuse, and that the message names the argument."""

import math

import numpy as np
import pytest
import torch
from l2_cases import OPS, amounts, batch

from roli_fast import ops
from roli_fast.errors import ArgumentError, ArgumentTypeError

SHAPE = (2, 3, 4, 5)
SELECT = ("best_x", "best_grad", "best_loss", "x_adv", "grad", "loss")


def good(name: str) -> dict:
    """Arguments of a call, by name, the written ones first."""
    generator = torch.Generator().manual_seed(0)
    if name == "select_best_":
        shapes = [SHAPE, SHAPE, (2,)] * 2
        values = [torch.randn(shape, generator=generator) for shape in shapes]
        return dict(zip(SELECT, values, strict=True))
    op = OPS[name]
    tensors = zip(op.tensors, batch(op, SHAPE, torch.float32), strict=True)
    return dict(tensors) | amounts(op, 0.3) | {"bounds": (0.0, 1.0)}


def call(name: str, arguments: dict) -> torch.Tensor:
    tensors = {k: arguments[k] for k in ("x_adv", "x_prev", "grad", "x") if k in arguments}
    if name == "select_best_":
        return ops.select_best_(**arguments)
    rest = {k: v for k, v in arguments.items() if k not in tensors}
    return getattr(ops, name)(**tensors, **rest)


NAMES = (*OPS, "select_best_")
TENSORS = (
    *(None, 0.5, [[0.5]], np.zeros(SHAPE, np.float32), "x", torch.float32, torch.tensor(0.5)),
    *(torch.zeros(SHAPE, dtype=d) for d in (torch.int64, torch.complex64, torch.bool)),
    *(torch.zeros(SHAPE).to_sparse(), torch.zeros(SHAPE, dtype=torch.float64)),
    *(torch.zeros(SHAPE, device="meta"), torch.zeros(SHAPE[1:]), torch.zeros(2, 3, 20)),
)
AMOUNTS = (
    *(-0.1, -1, math.nan, math.inf, -math.inf, None, "8/255", True, [0.1], 1j, np.float32("nan")),
    *(torch.tensor(0.1), torch.zeros(3), torch.zeros(2, 1), torch.ones(2, dtype=torch.int64)),
    *(torch.zeros(2, device="meta"), torch.zeros(2).to_sparse(), np.zeros(2)),
)
BOUNDS = (
    *((1.0, 0.0), (0.5, 0.5), (0.0, math.inf), (math.nan, 1.0), (0.0,), (0.0, 0.5, 1.0)),
    *(None, 1.0, ("0", "1"), (False, True), (torch.tensor(0.0), torch.tensor(1.0)), (None, 1)),
)


def wrong_values(argument: str) -> tuple:
    if argument == "bounds":
        return BOUNDS
    if argument in ("eps", "step_size", "momentum"):
        return AMOUNTS + ((1.5,) if argument == "momentum" else ())
    return TENSORS


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_argument_is_named(name):
    for argument in good(name):
        for value in wrong_values(argument):
            arguments = good(name) | {argument: value}
            before = {k: v.clone() for k, v in arguments.items() if _plain(v) and k != argument}
            with pytest.raises((ArgumentError, ArgumentTypeError)) as caught:
                call(name, arguments)
            # A first tensor of another shape or dtype makes the next one the odd one out.
            named = str(caught.value).split("`")[1]
            first = next(k for k in ("best_x", "x_adv", "best_loss") if k in arguments)
            blamed = {argument} if argument != first else set(arguments)
            blamed |= {"loss"} if argument == "best_loss" else set()
            assert named in blamed, (argument, value, str(caught.value))
            for key, kept in before.items():
                assert torch.equal(arguments[key], kept)


def _plain(value: object) -> bool:
    return isinstance(value, torch.Tensor)


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_that_requires_grad_is_refused_while_grad_mode_is_on(name):
    tensors = [key for key, value in good(name).items() if _plain(value)]
    for key in tensors:
        arguments = good(name)
        arguments[key] = arguments[key].clone().requires_grad_()
        with pytest.raises(ArgumentError, match=f"`{key}`.*no_grad"):
            call(name, arguments)
        with torch.no_grad():
            result, expected = call(name, arguments), call(name, good(name))
        assert torch.equal(result, expected)


@pytest.mark.parametrize("name", NAMES)
def test_shared_memory_is_refused(name):
    arguments = good(name)
    written = SELECT[:3] if name == "select_best_" else (next(iter(arguments)),)
    for target in written:
        for other in (key for key, value in arguments.items() if _plain(value)):
            if other == target or arguments[other].shape != arguments[target].shape:
                continue
            with pytest.raises(ArgumentError, match=r"expected memory apart from `\w+`"):
                call(name, good(name) | {other: arguments[target], target: arguments[target]})
            flat = torch.rand(2 * arguments[target].numel())
            n, shape = arguments[target].numel(), arguments[target].shape
            halves = {target: flat[:n].view(shape), other: flat[n - 1 : 2 * n - 1].view(shape)}
            with pytest.raises(ArgumentError, match="expected memory apart"):
                call(name, good(name) | halves)
            call(name, good(name) | halves | {other: flat[n:].view(shape)})


@pytest.mark.parametrize("name", OPS)
def test_an_amount_inside_the_written_tensor_is_refused(name):
    for amount in OPS[name].amounts:
        arguments = good(name)
        inside = next(iter(arguments.values()))[:, 0, 0, 0]
        with pytest.raises(ArgumentError, match=f"`{amount}`: expected memory apart"):
            call(name, arguments | {amount: inside})


@pytest.mark.parametrize("name", NAMES)
def test_expanded_targets_and_inference_tensors_are_refused(name):
    target = next(iter(good(name)))
    row = torch.rand(1, *SHAPE[1:])
    with pytest.raises(ArgumentError, match=f"`{target}`: expected elements with memory"):
        call(name, good(name) | {target: row.expand(SHAPE)})
    with torch.inference_mode():
        inner = good(name)
        call(name, inner)
    with pytest.raises(ArgumentError, match=f"`{target}`: expected a normal tensor"):
        call(name, inner)

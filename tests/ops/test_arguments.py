"""What linf_step_ and linf_random_start refuse, and that the message names the argument."""

import math

import numpy as np
import pytest
import torch

from roli_fast import ops
from roli_fast.errors import ArgumentError, ArgumentTypeError

SHAPE = (2, 3, 4, 5)


def good() -> dict:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(SHAPE, generator=generator)
    return {
        "x_adv": x.clone(),
        "grad": torch.randn(SHAPE, generator=generator),
        "x": x,
        "eps": 8 / 255,
        "step_size": 2 / 255,
        "bounds": (0.0, 1.0),
    }


def call(arguments: dict) -> torch.Tensor:
    positional = [arguments.pop(name) for name in ("x_adv", "grad", "x")]
    return ops.linf_step_(*positional, **arguments)


ANYTHING_BUT_A_TENSOR = (None, 0.5, [[0.5]], np.zeros(SHAPE, np.float32), "x", torch.float32)
WRONG_TENSORS = (
    torch.zeros(SHAPE, dtype=torch.int64),
    torch.zeros(SHAPE, dtype=torch.complex64),
    torch.zeros(SHAPE, dtype=torch.bool),
    torch.zeros(SHAPE).to_sparse(),
    torch.tensor(0.5),
)
WRONG_AMOUNTS = (
    *(-0.1, -1, math.nan, math.inf, -math.inf, None, "8/255", True, [0.1], 1j, np.float32("nan")),
    *(torch.tensor(0.1), torch.zeros(3), torch.zeros(2, 1), torch.ones(2, dtype=torch.int64)),
    *(torch.zeros(2, device="meta"), torch.zeros(2).to_sparse(), np.zeros(2)),
)
WRONG_BOUNDS = (
    *((1.0, 0.0), (0.5, 0.5), (0.0, math.inf), (math.nan, 1.0), (0.0,), (0.0, 0.5, 1.0)),
    *(None, 1.0, ("0", "1"), (False, True), (torch.tensor(0.0), torch.tensor(1.0)), (None, 1)),
)
CASES = [
    *(("x_adv", value) for value in (*ANYTHING_BUT_A_TENSOR, *WRONG_TENSORS)),
    *(("grad", value) for value in (*ANYTHING_BUT_A_TENSOR, *WRONG_TENSORS)),
    *(("x", value) for value in (*ANYTHING_BUT_A_TENSOR, *WRONG_TENSORS)),
    *((name, torch.zeros(SHAPE, dtype=torch.float64)) for name in ("grad", "x")),
    *((name, torch.zeros(SHAPE, dtype=torch.bfloat16)) for name in ("grad", "x")),
    *((name, torch.zeros(SHAPE, device="meta")) for name in ("grad", "x")),
    *((name, torch.zeros(SHAPE[1:])) for name in ("grad", "x")),
    *((name, torch.zeros(2, 3, 20)) for name in ("grad", "x")),
    *((name, value) for name in ("eps", "step_size") for value in WRONG_AMOUNTS),
    *(("bounds", value) for value in WRONG_BOUNDS),
]


@pytest.mark.parametrize(("name", "value"), CASES, ids=lambda value: repr(value)[:30])
def test_a_wrong_argument_is_named(name, value):
    arguments = good() | {name: value}
    before = arguments["x_adv"].clone() if name != "x_adv" else None
    written = arguments["x_adv"]
    with pytest.raises((ArgumentError, ArgumentTypeError), match=f"^`{name}`: expected"):
        call(arguments)
    if before is not None:
        assert torch.equal(written, before)


@pytest.mark.parametrize(
    "value", [1, 0, np.float32(0.1), np.float64(0.1), torch.full((2,), 0.1, dtype=torch.float64)]
)
@pytest.mark.parametrize("name", ["eps", "step_size"])
def test_every_kind_of_number_is_taken(name, value):
    number = torch.tensor([float(value)] * 2) if not isinstance(value, torch.Tensor) else value
    expected = call(good() | {name: number})
    assert torch.equal(call(good() | {name: value}), expected)


def test_the_message_gives_the_fix():
    with pytest.raises(ArgumentError) as caught:
        call(good() | {"eps": -0.1})
    assert str(caught.value) == (
        "`eps`: expected a number >= 0 or a tensor of shape (B,), got -0.1. "
        "Write 8/255 for pixel units."
    )


@pytest.mark.parametrize("name", ["x_adv", "grad", "x", "eps", "step_size"])
def test_a_tensor_that_requires_grad_is_refused_while_grad_mode_is_on(name):
    arguments = good() | {"eps": torch.full((2,), 0.1), "step_size": torch.full((2,), 0.1)}
    expected = call(dict(arguments, x_adv=arguments["x_adv"].clone()))
    arguments[name] = arguments[name].clone().requires_grad_()
    with pytest.raises(ArgumentError, match=f"`{name}`.*no_grad"):
        call(dict(arguments))
    with torch.no_grad():
        assert torch.equal(call(arguments), expected)


@pytest.mark.parametrize("name", ["grad", "x"])
def test_shared_memory_is_refused(name):
    buffer = torch.rand(3, *SHAPE)
    arguments = good() | {"x_adv": buffer[0], name: buffer[0]}
    with pytest.raises(ArgumentError, match=f"`{name}`: expected memory apart"):
        call(arguments)
    flat = buffer.flatten()
    n = buffer[0].numel()
    overlapping = flat[n - 1 : 2 * n - 1].view(SHAPE)
    with pytest.raises(ArgumentError, match=f"`{name}`: expected memory apart"):
        call(good() | {"x_adv": buffer[0], name: overlapping})
    with pytest.raises(ArgumentError, match=f"`{name}`: expected memory apart"):
        call(
            good()
            | {"x_adv": overlapping, name: buffer[0].flip(0).view_as(buffer[0]) * 0 + 1}
            | {name: flat[:n].view(SHAPE)}
        )
    call(good() | {"x_adv": buffer[0], name: buffer[1]})  # neighbours in memory are apart


def test_eps_inside_x_adv_is_refused():
    arguments = good()
    with pytest.raises(ArgumentError, match="`eps`: expected memory apart"):
        call(arguments | {"eps": arguments["x_adv"][:, 0, 0, 0]})


def test_x_and_grad_may_share_memory():
    arguments = good()
    arguments["grad"] = arguments["x"]
    expected = call(good() | {"grad": arguments["x"].clone()})
    assert torch.equal(call(arguments), expected)


def test_an_expanded_x_adv_is_refused_and_an_expanded_x_is_not():
    row = torch.rand(1, *SHAPE[1:])
    with pytest.raises(ArgumentError, match="`x_adv`: expected elements with memory"):
        call(good() | {"x_adv": row.expand(SHAPE)})
    expected = call(good() | {"x": row.repeat(2, 1, 1, 1)})
    assert torch.equal(call(good() | {"x": row.expand(SHAPE)}), expected)


def test_inference_tensors_follow_torch():
    arguments = good()
    with torch.inference_mode():
        inner = good()
        assert torch.equal(call(dict(inner)), call(dict(good())))
        call(dict(arguments))  # a normal tensor may be written in inference mode
    with pytest.raises(ArgumentError, match="`x_adv`: expected a normal tensor"):
        call(inner)


RANDOM_CASES = [
    *(("x", value) for value in (*ANYTHING_BUT_A_TENSOR, *WRONG_TENSORS)),
    *(("eps", value) for value in WRONG_AMOUNTS),
    *(("bounds", value) for value in WRONG_BOUNDS),
    *(("generator", value) for value in (0, "cpu", torch.random)),
]


@pytest.mark.parametrize(("name", "value"), RANDOM_CASES, ids=lambda value: repr(value)[:30])
def test_random_start_names_a_wrong_argument(name, value):
    arguments = {"x": torch.rand(SHAPE), "eps": 0.1} | {name: value}
    with pytest.raises((ArgumentError, ArgumentTypeError), match=f"^`{name}`: expected"):
        ops.linf_random_start(arguments.pop("x"), **arguments)


def test_bounds_that_hold_no_number_of_the_dtype_are_refused():
    x = torch.rand(SHAPE).to(torch.bfloat16)
    with pytest.raises(ArgumentError, match="`bounds`: expected a range that holds several"):
        ops.linf_random_start(x, eps=0.1, bounds=(0.5001, 0.5002))

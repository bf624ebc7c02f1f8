"""What the L1 ops and the random starts refuse, and that the message names the argument."""

import math

import pytest
import torch

from roli_fast import ops
from roli_fast.errors import ArgumentError, ArgumentTypeError

SHAPE = (2, 3, 4, 5)
TENSORS = {
    "l1_project_": ("x_adv", "x"),
    "l1_step_": ("x_adv", "grad", "x"),
    "linf_random_start": ("x",),
    "l2_random_start": ("x",),
    "l1_random_start": ("x",),
}
AMOUNTS = {op: ("eps",) for op in TENSORS} | {"l1_step_": ("eps", "step_size", "density")}


def good(op: str) -> dict:
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.rand(SHAPE, generator=generator) for name in TENSORS[op]}
    return values | {name: 0.25 for name in AMOUNTS[op]} | {"bounds": (0.0, 1.0)}


def call(op: str, arguments: dict) -> torch.Tensor:
    arguments = dict(arguments)
    positional = [arguments.pop(name) for name in TENSORS[op]]
    return getattr(ops, op)(*positional, **arguments)


WRONG_TENSORS = (
    *(None, 0.5, [[0.5]], torch.zeros(SHAPE, dtype=torch.int64), torch.zeros(SHAPE).to_sparse()),
    torch.tensor(0.5),
)
WRONG_OTHERS = (
    *(torch.zeros(SHAPE[1:]), torch.zeros(2, 3, 20), torch.zeros(SHAPE, device="meta")),
    torch.zeros(SHAPE, dtype=torch.bfloat16),
)
WRONG_AMOUNTS = (
    *(-0.1, math.nan, math.inf, None, "8/255", True, [0.1], torch.tensor(0.1), torch.zeros(3)),
    *(torch.ones(2, dtype=torch.int64), torch.zeros(2, device="meta")),
)
WRONG_BOUNDS = ((1.0, 0.0), (0.5, 0.5), (0.0, math.inf), (math.nan, 1.0), (0.0,), None, ("0", "1"))
WRONG_IDS = (0, [0, 1], torch.zeros(2), torch.zeros(3, dtype=torch.int64), torch.tensor(1))
CASES = [
    *((op, name, value) for op in TENSORS for name in TENSORS[op] for value in WRONG_TENSORS),
    *(
        (op, name, value)
        for op in TENSORS
        for name in TENSORS[op]
        if len(TENSORS[op]) > 1 and name != "x_adv"
        for value in WRONG_OTHERS
    ),
    *((op, name, value) for op in TENSORS for name in AMOUNTS[op] for value in WRONG_AMOUNTS),
    *((op, "bounds", value) for op in TENSORS for value in WRONG_BOUNDS),
    *((op, "sample_ids", value) for op in TENSORS if "random" in op for value in WRONG_IDS),
    *((op, "generator", value) for op in TENSORS if "random" in op for value in (0, "cpu")),
    ("l1_step_", "density", 1.5),
]


@pytest.mark.parametrize(("op", "name", "value"), CASES, ids=lambda value: repr(value)[:30])
def test_a_wrong_argument_is_named(op, name, value):
    arguments = good(op) | {name: value}
    written = arguments.get("x_adv")
    before = written.clone() if name != "x_adv" and written is not None else None
    with pytest.raises((ArgumentError, ArgumentTypeError), match=f"^`{name}`: expected"):
        call(op, arguments)
    if before is not None:
        assert torch.equal(written, before)


@pytest.mark.parametrize("op", ["l1_project_", "l1_step_"])
def test_a_tensor_that_requires_grad_is_refused_while_grad_mode_is_on(op):
    for name in (*TENSORS[op], *AMOUNTS[op]):
        arguments = good(op)
        if name in AMOUNTS[op]:
            arguments[name] = torch.full((2,), 0.25)
        expected = call(op, arguments | {"x_adv": arguments["x_adv"].clone()})
        arguments[name] = arguments[name].clone().requires_grad_()
        with pytest.raises(ArgumentError, match=f"`{name}`.*no_grad"):
            call(op, arguments)
        with torch.no_grad():
            assert torch.equal(call(op, arguments), expected)


@pytest.mark.parametrize("op", ["l1_project_", "l1_step_"])
def test_shared_memory_is_refused(op):
    for name in TENSORS[op][1:]:
        arguments = good(op)
        with pytest.raises(ArgumentError, match=f"`{name}`: expected memory apart"):
            call(op, arguments | {name: arguments["x_adv"]})
    for name in AMOUNTS[op]:
        arguments = good(op)
        inside = arguments["x_adv"][:, 0, 0, 0]
        with pytest.raises(ArgumentError, match=f"`{name}`: expected memory apart"):
            call(op, arguments | {name: inside})


@pytest.mark.parametrize("op", ["l1_project_", "l1_step_"])
def test_an_expanded_or_an_inference_x_adv_is_refused(op):
    with pytest.raises(ArgumentError, match="`x_adv`: expected elements with memory"):
        call(op, good(op) | {"x_adv": torch.rand(1, *SHAPE[1:]).expand(SHAPE)})
    with torch.inference_mode():
        inner = good(op)
        call(op, inner)
    with pytest.raises(ArgumentError, match="`x_adv`: expected a normal tensor"):
        call(op, inner)


STARTS = ("linf_random_start", "l2_random_start", "l1_random_start")


@pytest.mark.parametrize("op", STARTS)
def test_autocast_changes_nothing(op):
    generator = torch.Generator().manual_seed(0)
    expected = call(op, good(op) | {"generator": generator})
    generator.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(call(op, good(op) | {"generator": generator}), expected)


@pytest.mark.parametrize("op", STARTS)
def test_other_tensor_types_take_the_reference(op):
    class Marked(torch.Tensor):
        pass

    generator = torch.Generator().manual_seed(0)
    expected = call(op, good(op) | {"generator": generator})
    generator.manual_seed(0)
    marked = {"x": good(op)["x"].as_subclass(Marked), "generator": generator}
    assert torch.equal(call(op, good(op) | marked), expected)

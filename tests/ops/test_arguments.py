"""What the ops refuse, and that the message names the argument; test_fuzz.py tries many more."""

import math

import numpy as np
import pytest
import torch
from cases import STARTS, UPDATES, amounts, batch
from lora_cases import layer

from roli_fast import ops
from roli_fast.errors import ArgumentError, ArgumentTypeError

SHAPE = (2, 3, 4, 5)
SELECT = ("best_x", "best_grad", "best_loss", "x_adv", "grad", "loss")
NAMES = (*UPDATES, "select_best_", *STARTS)
WRITTEN = {"select_best_": SELECT[:3]} | {name: op.tensors[:1] for name, op in UPDATES.items()}
REFUSED = (ArgumentError, ArgumentTypeError)


def good(name: str) -> dict:
    """Arguments of a call, the written ones first."""
    generator = torch.Generator().manual_seed(0)
    if name == "select_best_":
        shapes = [SHAPE, SHAPE, (2,)] * 2
        values = [torch.randn(shape, generator=generator) for shape in shapes]
        return dict(zip(SELECT, values, strict=True))
    if name in STARTS:
        return {"x": torch.rand(SHAPE, generator=generator), "eps": 0.3, "bounds": (0.0, 1.0)}
    op = UPDATES[name]
    tensors = zip(op.tensors, batch(op, SHAPE, torch.float32), strict=True)
    return dict(tensors) | amounts(op, 0.3) | {"bounds": (0.0, 1.0)}


def call(name: str, arguments: dict) -> torch.Tensor:
    return getattr(ops, name)(**arguments)


def tensors_of(name: str) -> list[str]:
    return [key for key, value in good(name).items() if isinstance(value, torch.Tensor)]


TENSORS = (
    *(None, 0.5, [[0.5]], np.zeros(SHAPE, np.float32), torch.float32, torch.tensor(0.5)),
    *(torch.zeros(SHAPE, dtype=d) for d in (torch.int64, torch.complex64, torch.float64)),
    *(torch.zeros(SHAPE).to_sparse(), torch.zeros(SHAPE[1:]), torch.zeros(2, 3, 20)),
    torch.zeros(SHAPE, device="meta"),
)
AMOUNTS = (
    *(-0.1, math.nan, math.inf, None, "8/255", True, [0.1], 1j, torch.tensor(0.1)),
    *(torch.zeros(3), torch.zeros(2, 1), torch.ones(2, dtype=torch.int64), np.zeros(2)),
    *(torch.zeros(2, device="meta"), torch.zeros(2).to_sparse()),
)
BOUNDS = (
    *((1.0, 0.0), (0.5, 0.5), (0.0, math.inf), (math.nan, 1.0), (0.0,), (0.0, 0.5, 1.0)),
    *(None, ("0", "1"), (False, True), (torch.tensor(0.0), torch.tensor(1.0)), (0.5, 0.5 + 1e-12)),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_argument_is_named_and_nothing_is_written(name):
    for argument, value in good(name).items():
        known = BOUNDS if argument == "bounds" else AMOUNTS
        known = TENSORS if isinstance(value, torch.Tensor) else known
        for wrong in known[1 if argument == "value" else 0 :]:  # a linear function's has a sign
            arguments = good(name) | {argument: wrong}
            written = set(WRITTEN.get(name, ())) - {argument}
            kept = {k: arguments[k].clone() for k in written}
            if name in STARTS and isinstance(wrong, torch.Tensor) and argument == "x":
                if wrong.dtype.is_floating_point and wrong.ndim and not wrong.is_sparse:
                    continue  # another batch
            with pytest.raises(REFUSED, match="^`[a-z_]+`: expected ") as caught:
                call(name, arguments)
            # A first tensor of another shape or dtype makes the next one the odd one out.
            named = str(caught.value).split("`")[1]
            first = next((k for k in ("best_x", "x_adv", "x") if k in arguments), "")
            blamed = {argument} if argument != first else set(arguments)
            blamed |= {"loss"} if argument == "best_loss" else set()
            assert named in blamed, (argument, wrong, str(caught.value))
            assert all(torch.equal(arguments[key], value) for key, value in kept.items())


@pytest.mark.parametrize("value", [1, 0, np.float32(0.1), np.float64(0.1), torch.full((2,), 0.1)])
def test_every_kind_of_number_is_taken(op, value):
    for name in op.amounts:
        number = value.double() if isinstance(value, torch.Tensor) else torch.full((2,), value)
        expected = call(op.name, good(op.name) | {name: number.float()})
        assert torch.equal(call(op.name, good(op.name) | {name: value}), expected)


def test_the_messages_give_the_fix():
    with pytest.raises(ArgumentError) as caught:
        call("linf_step_", good("linf_step_") | {"eps": -0.1})
    assert str(caught.value) == (
        "`eps`: expected a number >= 0 or a tensor of shape (B,), got -0.1. "
        "Write 8/255 for pixel units."
    )
    with pytest.raises(ArgumentTypeError) as caught:
        call("linf_step_", good("linf_step_") | {"x": torch.zeros(2, 3).half()})
    assert str(caught.value) == (
        "`x`: expected a dense float32 tensor of shape (2, 3, 4, 5) on cpu, "
        "got a strided torch.float16 tensor of shape (2, 3) on cpu."
    )
    for name, number in (("alpha_max", 1.5), ("value", math.inf)):
        with pytest.raises(ArgumentError, match=rf"^`{name}`: expected a .* of shape \(B,\), got"):
            call("fab_l2_step_", good("fab_l2_step_") | {name: number})
    with pytest.raises(ArgumentError) as caught:
        ops.lora_linear(*layer().values(), scale=1.0, rows=((0, 9), (8, 24)))
    assert str(caught.value) == (
        "`rows`: expected disjoint ranges ((start, stop), ...) of the 24 output rows, got "
        "((0, 9), (8, 24)). q and v of a fused qkv with width d: ((0, d), (2 * d, 3 * d))."
    )


def test_missing_and_unknown_arguments_are_pythons_own_errors(op):
    arguments = good(op.name)
    with pytest.raises(TypeError, match="unknown"):
        call(op.name, arguments | {"unknown": 0.1})
    for name in (op.tensors[0], op.amounts[-1]):
        with pytest.raises(TypeError, match=name):
            call(op.name, {key: value for key, value in arguments.items() if key != name})


def test_bounds_that_hold_no_number_of_the_dtype_are_refused():
    x = torch.rand(SHAPE).to(torch.bfloat16)
    with pytest.raises(ArgumentError, match="`bounds`: expected a range that holds several"):
        ops.linf_random_start(x, eps=0.1, bounds=(0.5001, 0.5002))


@pytest.mark.parametrize("name", [*UPDATES, "select_best_"])
def test_a_tensor_that_requires_grad_is_refused_while_grad_mode_is_on(name):
    numbers = UPDATES[name].amounts if name in UPDATES else ()
    each = {key: torch.full((2,), 0.1) for key in numbers}
    expected = call(name, good(name) | each)
    for key in (*tensors_of(name), *numbers):
        arguments = good(name) | {k: v.clone() for k, v in each.items()}
        arguments[key] = arguments[key].clone().requires_grad_()
        with pytest.raises(ArgumentError, match=f"`{key}`.*no_grad"):
            call(name, arguments)
        with torch.no_grad():
            assert torch.equal(call(name, arguments), expected)


@pytest.mark.parametrize("name", [*UPDATES, "select_best_"])
def test_shared_memory_is_refused(name):
    for target in WRITTEN[name]:
        shape, n = good(name)[target].shape, good(name)[target].numel()
        for other in tensors_of(name):
            if other == target or good(name)[other].shape != shape:
                continue
            flat = torch.rand(2 * n)
            first = flat[:n].view(shape)
            for wrong in (first, flat[n - 1 : 2 * n - 1].view(shape)):
                with pytest.raises(ArgumentError, match=r"expected memory apart from `\w+`"):
                    call(name, good(name) | {target: first, other: wrong})
            call(name, good(name) | {target: first, other: flat[n:].view(shape)})  # neighbours


def test_an_amount_inside_the_written_tensor_is_refused(op):
    for amount in op.amounts:
        arguments = good(op.name)
        inside = arguments[op.tensors[0]][:, 0, 0, 0]
        with pytest.raises(ArgumentError, match=f"`{amount}`: expected memory apart"):
            call(op.name, arguments | {amount: inside})


def test_tensors_that_are_only_read_may_share_memory_and_be_expanded():
    arguments = good("linf_step_")
    expected = call("linf_step_", good("linf_step_") | {"grad": arguments["x"].clone()})
    arguments["grad"] = arguments["x"]
    assert torch.equal(call("linf_step_", arguments), expected)
    row = torch.rand(1, *SHAPE[1:])
    expected = call("linf_step_", good("linf_step_") | {"x": row.repeat(2, 1, 1, 1)})
    assert torch.equal(call("linf_step_", good("linf_step_") | {"x": row.expand(SHAPE)}), expected)


@pytest.mark.parametrize("name", [*UPDATES, "select_best_"])
def test_expanded_targets_and_inference_tensors_are_refused(name):
    target, row = WRITTEN[name][0], torch.rand(1, *SHAPE[1:])
    with pytest.raises(ArgumentError, match=f"`{target}`: expected elements with memory"):
        call(name, good(name) | {target: row.expand(SHAPE)})
    with torch.inference_mode():
        inner = good(name)
        call(name, inner)
        call(name, {k: v for k, v in good(name).items()})
    with pytest.raises(ArgumentError, match=f"`{target}`: expected a normal tensor"):
        call(name, inner)


WRONG_IDS = (0, [0, 1], torch.zeros(2), torch.zeros(3, dtype=torch.int64), torch.tensor(1))
WRONG = [*(("sample_ids", value) for value in WRONG_IDS)]
WRONG += [("generator", value) for value in (0, "cpu", torch.random)]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda value: repr(value)[:30])
def test_a_random_start_names_wrong_ids_and_generators(name, value):
    for start in STARTS:
        with pytest.raises(REFUSED, match=f"^`{name}`: expected"):
            call(start, good(start) | {name: value})


NUMBERS = (math.nan, math.inf, None, "1", True, 1j, torch.tensor(1.0))
LINEAR = [
    *(("x", v) for v in (torch.zeros(3, 19), torch.tensor(0.5))),
    *(("weight", v) for v in (torch.zeros(24), torch.zeros(24, 20).double())),
    *(("bias", v) for v in (0.5, torch.zeros(23), torch.zeros(24, 1), torch.zeros(24).half())),
    *(("a", v) for v in (None, torch.zeros(2, 20), torch.zeros(3, 19), torch.zeros(3, 20).half())),
    *(("b", v) for v in (None, torch.zeros(23, 3), torch.zeros(24, 0), torch.zeros(24, 3).half())),
    *((name, torch.zeros(3, 20, device="meta")) for name in ("weight", "a", "b")),
    *(("scale", v) for v in NUMBERS),
    *(("dropout", v) for v in (*NUMBERS, 1.0, -0.1, 1)),
    *(("seed", v) for v in (3, "3", torch.zeros(1), torch.zeros(2, dtype=torch.int64))),
    *(("rows", v) for v in (0, "all", (), ((0, 25),), ((-1, 3),), ((5, 5),), ((9, 3),))),
    *(("rows", v) for v in (((0, 9), (8, 24)), ((0.0, 24.0),), ((False, 24),), ((0, 8, 24),))),
]


@pytest.mark.parametrize(("name", "value"), LINEAR, ids=lambda value: repr(value)[:40])
def test_lora_linear_names_a_wrong_argument(name, value):
    with pytest.raises(REFUSED, match=f"^`{name}`: expected"):
        ops.lora_linear(**layer() | {"scale": 1.0, name: value})


def lists() -> dict:
    case = layer()
    values = {"weights": case["weight"], "a": case["a"], "b": case["b"], "scales": 1.0}
    merged = [torch.zeros(24, 20), torch.zeros(24, 20)]
    return {name: [value] * 2 for name, value in (values | {"rows": None}).items()} | {
        "merged": merged
    }


MERGE = [
    *((name, v) for name in lists() for v in (3, "xy")),
    *((name, []) for name in lists() if name != "merged"),
    *((name, [None, v]) for name in ("merged", "weights", "a", "b") for v in (None, 0.5)),
    ("merged", [torch.zeros(24, 19)] * 2),
    ("merged", [torch.zeros(24, 20).double()] * 2),
    ("merged", [torch.zeros(1, 20).expand(24, 20)] * 2),
    ("merged", [torch.zeros(24, 20, device="meta")] * 2),
    ("merged", [torch.zeros(24, 20, requires_grad=True)] * 2),
    ("merged", [torch.zeros(24, 20)] * 2),
    ("a", [torch.zeros(3, 20).double()] * 2),
    ("b", [torch.zeros(23, 3)] * 2),
    *(("scales", [1.0, v]) for v in NUMBERS),
    *(("rows", [None, v]) for v in (0, ((0, 25),), ((0, 9), (8, 24)))),
]


@pytest.mark.parametrize(("name", "value"), MERGE, ids=lambda value: repr(value)[:40])
def test_lora_merge_names_a_wrong_argument_and_writes_nothing(name, value):
    arguments = lists() | {name: value}
    with pytest.raises(REFUSED, match=f"^`{name}`: expected"):
        ops.lora_merge_(**arguments)
    if name != "merged":
        assert not any(buffer.any() for buffer in arguments["merged"])


def test_a_merge_refuses_memory_that_its_buffers_share():
    good = lists()
    for name in ("weights", "a", "b"):
        shared = torch.zeros(24, 20)
        view = {"weights": shared, "a": shared[:3], "b": shared.flatten()[:72].view(24, 3)}[name]
        arguments = good | {"merged": [shared, torch.zeros(24, 20)], name: [view, good[name][1]]}
        with pytest.raises(ArgumentError, match=f"`{name}`: expected memory apart from `merged`"):
            ops.lora_merge_(**arguments)

"""Every public op against wrong and strange arguments, one at a time.

A call writes what it says and nothing else, or it raises and changes nothing. WRONG arguments are
refused by their own name, RIGHT ones are taken; ODD ones depend on the op and on the other
arguments, and may raise torch's own error. What comes out: test_op_contract.py.
"""

import inspect
import math
import random
import re
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from cases import DTYPES, STARTS
from lora_cases import layer
from torch import Tensor

from roli_fast import ops
from roli_fast.errors import ArgumentError, ArgumentTypeError
from roli_fast.ops import fused

WRONG, RIGHT, ODD = "wrong", "right", "odd"
SHAPES = ((2, 3, 4, 5), (3, 7), (1, 1), (5,), (0, 3, 2), (2, 0), (4, 1, 1, 3))
NUMBERS = {"eps": 0.1, "step_size": 0.03, "momentum": 0.75, "density": 0.3}
NUMBERS |= {"value": -0.2, "alpha_max": 0.1, "eta": 1.05}
ROWS = ((0, 8), (16, 24))


def merge(merged, weight, a, b, *, scale, rows) -> None:
    """`lora_merge_` of one layer."""
    ops.lora_merge_([merged], [weight], [a], [b], scales=[scale], rows=[rows])


OPS = {name: op for name, op in vars(ops).items() if name in ops.native.OPS}
OPS["lora_merge_"] = merge
WRITTEN = {name: ("x_adv",) for name in OPS if name[-1] == "_"} | {
    "apgd_linf_step_": ("x_prev",),
    "apgd_l2_step_": ("x_prev",),
    "select_best_": ("best_x", "best_grad", "best_loss"),
    "lora_merge_": ("merged",),
}


class Change(NamedTuple):
    """`make`: (the argument's name, all arguments) -> what is put in its place."""

    name: str
    outcome: str
    make: Callable[[str, dict[str, Any]], Any]


def fixed(outcome: str, *values: object) -> list[Change]:
    return [Change(repr(value)[:40], outcome, lambda *_, value=value: value) for value in values]


def own(outcome: str, **changes: Callable[[Tensor], Any]) -> list[Change]:
    """Changes of the tensor itself."""
    return [
        Change(name, outcome, lambda argument, values, change=change: change(values[argument]))
        for name, change in changes.items()
    ]


class Subclass(Tensor):
    """A tensor type that torch does not know."""


def negated(value: Tensor) -> Tensor:
    """The same numbers in a view whose memory holds their negatives."""
    if value.dtype != torch.float32:
        return value
    return torch.complex(torch.zeros_like(value), -value).conj().imag


def strided(value: Tensor) -> Tensor:
    """Every other element of a larger memory."""
    memory = torch.full((*value.shape, 2), 7, dtype=value.dtype)
    memory[..., 0] = value
    return memory[..., 0]


def shifted(value: Tensor) -> Tensor:
    """Contiguous, one element behind the begin of its memory."""
    memory = torch.full((value.numel() + 3,), 7, dtype=value.dtype)
    memory[1 : 1 + value.numel()] = value.flatten()
    return memory[1 : 1 + value.numel()].view(value.shape)


def sliding(value: Tensor) -> Tensor:
    """Rows that overlap in memory."""
    memory = torch.linspace(0, 1, value.numel() + 1, dtype=torch.float32).to(value.dtype)
    strides = torch.empty(value.shape).stride()
    return memory.as_strided(value.shape, (max(value[:1].numel() - 1, 1), *strides[1:]))


def freed(value: Tensor) -> Any:
    """Its memory given back, as by FSDP; an empty tensor has none to lose."""
    if value.numel() < 2:
        return "x"
    value = value.clone(memory_format=torch.contiguous_format)
    value.untyped_storage().resize_(0)
    return value


def inference(value: Tensor) -> Tensor:
    with torch.inference_mode():
        return value.clone()


def another(argument: str, values: dict[str, Any]) -> Any:
    """Another argument itself, the last that has this shape and dtype."""
    own = values[argument]
    same = [
        other
        for name, other in values.items()
        if name != argument and isinstance(other, Tensor) and other.shape == own.shape
    ]
    return same[-1] if same else own


def overlapping(argument: str, values: dict[str, Any]) -> Any:
    """Memory that begins inside another argument's, which moves to the same memory."""
    own, n = values[argument], values[argument].numel()
    for name, other in values.items():
        if name != argument and isinstance(other, Tensor) and other.shape == own.shape and n > 1:
            memory = torch.linspace(0, 1, 2 * n, dtype=torch.float32).to(other.dtype)
            values[name] = memory[:n].view(own.shape)
            return memory[n - 1 : 2 * n - 1].view(own.shape)
    return own


NO_TENSOR = ("x", True, [0.5], (), object(), np.zeros((2, 3)), torch.float32, 1j)
VIEWS = [
    *own(RIGHT, strided=strided, shifted=shifted, negated=negated),
    *own(RIGHT, subclass=lambda v: v.clone().as_subclass(Subclass)),
    *own(ODD, inference=inference, meta=lambda v: v.to("meta")),
    *own(ODD, expanded=lambda v: v[:1].expand(v.shape) if len(v) else v),
    *own(ODD, parameter=lambda v: torch.nn.Parameter(v.clone())),
    *own(ODD, followed=lambda v: v.clone().requires_grad_() * 1),
    *own(WRONG, freed=freed, scalar=lambda v: torch.zeros((), dtype=v.dtype)),
    *own(WRONG, int64=lambda v: v.to(torch.int64), sparse=lambda v: v.to_sparse()),
]
SHAPED = [
    *own(ODD, fp64=lambda v: v.double(), bf16=lambda v: v.bfloat16(), sliding=sliding),
    *own(ODD, wider=lambda v: v.unsqueeze(-1), flat=lambda v: v.flatten()),
    *own(ODD, longer=lambda v: torch.cat([v, v.new_zeros((1, *v.shape[1:]))])),
    Change("another argument", ODD, another),
    Change("overlapping another", ODD, overlapping),
]
BATCH = [
    *fixed(WRONG, None, 0.5, *NO_TENSOR),
    *(*VIEWS, *SHAPED),
    *own(RIGHT, huge=lambda v: ((v.double() - 0.5) * torch.finfo(v.dtype).max).to(v.dtype)),
    *own(RIGHT, nan=lambda v: torch.where(v > 0.5, torch.nan, v)),
]
NAN, INF = math.nan, math.inf
AMOUNT = [
    *fixed(WRONG, None, *NO_TENSOR, -0.1, -1, NAN, INF, -INF, 10**400, 1e39, torch.zeros(99)),
    *fixed(RIGHT, 0, 1, -0.0, 5e-324, 1e-40, Fraction(1, 8), np.float32(0.1), np.float64(0.25)),
    *fixed(ODD, np.int64(3), 2**60, 1e30),
    *(
        Change(name, outcome, lambda argument, v, make=make: make(argument, as_tensor(argument, v)))
        for name, outcome, make in (
            *VIEWS,
            *own(RIGHT, fp64=lambda v: v.double(), bf16=lambda v: v.bfloat16()),
            *own(WRONG, column=lambda v: v.unsqueeze(1)),
            *(c for n in (-1.0, 1e30, NAN, INF) for c in own(RIGHT, full=lambda v, n=n: v * 0 + n)),
        )
    ),
]
BOUNDS = [
    *fixed(WRONG, (1.0, 0.0), (0.5, 0.5), (NAN, 1.0), (0.0, INF), (0, 10**400), (-1e39, 1e39)),
    *fixed(ODD, None, 0.5, (0.0,), (0.0, 0.5, 1.0), (None, 1), (0, 1j), "01", (0.5001, 0.5002)),
    *fixed(RIGHT, [0, 1], np.array([0.0, 1.0]), (0.1, 0.9), (Fraction(0), 1), (-1e30, 1e30)),
]
IDS = [
    *fixed(WRONG, 0.5, *NO_TENSOR),
    *fixed(RIGHT, None),
    *own(WRONG, int32=lambda v: v.int(), float=lambda v: v.float(), freed=freed),
    *own(WRONG, sparse=lambda v: v.to_sparse(), longer=lambda v: torch.zeros(99).long()),
    *own(ODD, meta=lambda v: v.to("meta")),
    *own(RIGHT, strided=strided, negative=lambda v: v - 2**63),
]
MATRIX = [*fixed(WRONG, None, 0.5, *NO_TENSOR), *VIEWS, *SHAPED]
NUMBER = fixed(WRONG, None, *NO_TENSOR, NAN, INF, 10**400)
CHANGES = {
    **dict.fromkeys(("x_adv", "x_prev", "grad", "x", "best_x", "best_grad"), BATCH),
    **dict.fromkeys(("best_loss", "loss"), BATCH),
    **dict.fromkeys(NUMBERS, AMOUNT),
    "value": [c for c in AMOUNT if c.name not in ("-0.1", "-1")],
    "bounds": BOUNDS,
    "generator": fixed(WRONG, 0, 0.5, *NO_TENSOR, np.random.default_rng(0)),
    "sample_ids": IDS,
    **dict.fromkeys(("merged", "weight", "a", "b"), MATRIX),
    "bias": [*fixed(RIGHT, None), *MATRIX[1:]],
    "seed": [*fixed(WRONG, 7, *NO_TENSOR), *(c for c in IDS if c.name not in ("negative", "None"))],
    "scale": [*NUMBER, *fixed(RIGHT, 0, -2, 1e-30)],
    "dropout": [*NUMBER, *fixed(WRONG, -0.1, 1.0, 2), *fixed(RIGHT, 0)],
    "rows": [
        *fixed(WRONG, (), ((0, 8), (2, 6)), ((8, 0), (16, 24)), ((0, 8), (17, 25))),
        *fixed(WRONG, ((-8, 0), (16, 24)), ((0, 0), (8, 24))),
        *fixed(ODD, 0.5, (0, 8), "rows", ((0.0, 8), (16, 24)), None, ((0, 8),)),
        *fixed(RIGHT, [[0, 8], [16, 24]], ((16, 24), (0, 8))),
    ],
}
"""What to try for each name of a parameter of a public op."""


def as_tensor(argument: str, values: dict[str, Any]) -> dict[str, Any]:
    """The arguments with this one as a tensor (B,)."""
    value, batch = values[argument], next(iter(values.values()))
    if not isinstance(value, Tensor):
        value = torch.full(batch.shape[:1], float(value))
    return values | {argument: value}


def parameters(op: str) -> list[str]:
    return list(inspect.signature(OPS[op]).parameters)


def good(op: str, rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of a call that has to succeed."""
    source = torch.Generator().manual_seed(rng.randrange(2**32))
    if op.startswith("lora"):
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        case = layer(ROWS, dtype, batch=(3,)) | {"scale": 0.5, "rows": ROWS, "dropout": 0.0}
        case |= {"seed": torch.tensor([5]), "merged": torch.full((24, 20), 7.0, dtype=dtype)}
        return {name: case[name] for name in parameters(op)}

    def tensor(name: str) -> Tensor:
        value = torch.rand(shape[:1] if "loss" in name else shape, generator=source)
        value = (value - 0.5 if "grad" in name else value).to(dtype)
        last = value.dim() == 4 and rng.random() < 0.2
        return value.contiguous(memory_format=torch.channels_last) if last else value

    values: dict[str, Any] = {}
    for name in parameters(op):
        if name in NUMBERS:
            each = torch.rand(shape[:1], generator=source).to(rng.choice(DTYPES))
            values[name] = NUMBERS[name] if rng.random() < 0.6 else each
        elif name == "bounds":
            values[name] = (0.0, 1.0)
        elif name == "generator":
            values[name] = torch.Generator().manual_seed(rng.randrange(2**32))
        elif name == "sample_ids":
            values[name] = torch.randint(2**60, shape[:1], generator=source)
        else:
            values[name] = tensor(name)
    return values


def call(op: str, values: dict[str, Any]) -> Any:
    kinds = inspect.signature(OPS[op]).parameters
    named = {n: v for n, v in values.items() if kinds[n].kind is inspect.Parameter.KEYWORD_ONLY}
    return OPS[op](*(v for n, v in values.items() if n not in named), **named)


def has_memory(value: object) -> bool:
    """Whether there are numbers to read."""
    if not isinstance(value, Tensor) or value.is_meta or value.layout is not torch.strided:
        return False
    first = value.storage_offset() * value.element_size()
    return value.untyped_storage().nbytes() >= first + fused._reach(value)


def memory_of(value: Tensor) -> Tensor:
    """All of the memory that the tensor is a view of, in its dtype."""
    plain = value.as_subclass(Tensor).detach()
    if plain.is_neg():
        return plain
    whole = plain.untyped_storage().nbytes() // plain.element_size()
    return plain.as_strided((whole,), (1,), 0)


def same(actual: Tensor, expected: Tensor) -> bool:
    return bool(((actual == expected) | ((actual != actual) & (expected != expected))).all())


@contextmanager
def fp16_by_default():
    torch.set_default_dtype(torch.float16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SETTINGS: dict[str, Any] = {
    "usual": nullcontext,
    "no grad": torch.no_grad,
    "fp16 as default dtype": fp16_by_default,
    "inference mode": torch.inference_mode,
    "the reference": lambda: ops.use_backend("reference"),
}
"""Where a call is made: it changes nothing."""


def trial(op: str, name: str, change: Change, rng: random.Random) -> None:
    values = good(op, rng, rng.choice(SHAPES), rng.choice(DTYPES))
    values[name] = change.make(name, values)  # which may move others
    held = {key: value for key, value in values.items() if has_memory(value)}
    before = {key: memory_of(value).clone() for key, value in held.items()}
    refused = True
    try:
        with SETTINGS[rng.choice(list(SETTINGS))]():
            call(op, values)
        refused = False
    except (ArgumentError, ArgumentTypeError) as error:
        blamed = re.match(r"`(\w+)`: expected ", str(error))
        assert blamed and change.outcome != RIGHT, error
        assert change.outcome == ODD or blamed[1].rstrip("s") == name.rstrip("s"), error
    except Exception as error:
        assert change.outcome == ODD, error
    assert refused or change.outcome != WRONG
    shared = len({id(v.untyped_storage()) for v in held.values()}) < len(held)
    for key, memory in before.items():
        if refused or not (shared or key in WRITTEN.get(op, ())):
            assert same(memory_of(values[key]), memory), f"{key} has changed"


def test_every_public_op_is_here():
    assert set(OPS) == set(ops.native.OPS)
    assert all(set(parameters(op)) <= set(CHANGES) for op in OPS)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("count", [1, pytest.param(100, marks=pytest.mark.slow)])
def test_one_change(op, count):
    rng = random.Random(op)
    for name in parameters(op):
        for change in CHANGES[name] * count:
            try:
                trial(op, name, change, rng)
            except AssertionError as error:
                raise AssertionError(f"{name} {change.name}: {error}") from error


def test_the_messages_give_the_fix():
    x = torch.zeros(2, 3)
    number, shape = {"eps": -0.1}, {"x": x.half()}
    for arguments, message in (
        (number, "`eps`: expected a number >= 0 or .*, got -0.1. Write 8/255 for pixel units."),
        (shape, r"`x`: expected a dense float32 tensor of shape \(2, 3\) on cpu, got a strided"),
        ({"grad": x}, r"`grad`: expected memory apart from `x_adv`.*Pass x_adv.clone\(\) as"),
    ):
        call = {"grad": x + 1, "x": x + 1, "eps": 0.1, "step_size": 0.1} | arguments
        with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
            ops.linf_step_(x, **call)


@pytest.mark.parametrize("name", [n for n in OPS if n not in STARTS and "lora" not in n])
def test_a_tensor_that_requires_grad_is_refused_while_grad_mode_is_on(name):
    values = good(name, random.Random(0), (2, 3), torch.float32)
    values = {n: v if n not in NUMBERS else torch.full((2,), NUMBERS[n]) for n, v in values.items()}
    for key in (key for key, value in values.items() if isinstance(value, Tensor)):
        arguments = {n: v.clone() if isinstance(v, Tensor) else v for n, v in values.items()}
        arguments[key].requires_grad_()
        with pytest.raises(ArgumentError, match=f"`{key}`.*no_grad"):
            call(name, arguments)
        with torch.no_grad():
            call(name, arguments)


def test_rows_of_floats_leave_a_buffer_that_negates_as_it_was():
    """A part of it was written before torch refused the slice."""
    values = good("lora_merge_", random.Random(0), (2, 3), torch.float32)
    values["merged"], values["rows"] = negated(values["merged"]), ((0.0, 8), (16, 24))
    before = values["merged"].clone()
    with pytest.raises(TypeError):
        call("lora_merge_", values)
    assert torch.equal(values["merged"], before)

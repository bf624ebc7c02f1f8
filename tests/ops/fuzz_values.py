"""What the fuzz test puts in place of an argument, each with what has to come of it.

A change is a function (its own argument's name, all arguments of the call) -> new value. WRONG has
to be refused by the argument's own name, RIGHT to be taken; EITHER is for changes that depend on
the op and on the other arguments: taken with the right result, or refused with a name.
"""

import warnings
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

WRONG, RIGHT, EITHER = "wrong", "right", "either"


class Change(NamedTuple):
    name: str
    outcome: str
    make: Callable[[str, dict[str, Any]], Any]


class Subclass(Tensor):
    """A tensor type that torch does not know."""


def fixed(outcome: str, *values: object) -> list[Change]:
    return [Change(repr(value)[:40], outcome, lambda *_, value=value: value) for value in values]


def own(name: str, outcome: str, change: Callable[[Tensor], Any]) -> Change:
    """A change of the tensor itself."""
    return Change(name, outcome, lambda argument, values: change(values[argument]))


def negated(value: Tensor) -> Tensor:
    """The same numbers in a view whose memory holds their negatives."""
    return torch.complex(torch.zeros_like(value, dtype=torch.float32), -value.float()).conj().imag


def strided(value: Tensor) -> Tensor:
    """Every other element of a larger memory."""
    memory = torch.full((*value.shape, 2), 7.0, dtype=value.dtype)
    memory[..., 0] = value
    return memory[..., 0]


def shifted(value: Tensor) -> Tensor:
    """Contiguous, one element behind the begin of its memory."""
    memory = torch.full((value.numel() + 3,), 7.0, dtype=value.dtype)
    memory[1 : 1 + value.numel()] = value.flatten()
    return memory[1 : 1 + value.numel()].view(value.shape)


def sliding(value: Tensor) -> Tensor:
    """Rows that overlap in memory."""
    memory = torch.linspace(0, 1, value.numel() + 1, dtype=torch.float32).to(value.dtype)
    inner = value[:1].numel()
    strides = torch.empty(value.shape).stride()
    return memory.as_strided(value.shape, (max(inner - 1, 1), *strides[1:]))


def freed(value: Tensor, part: int = 0) -> Any:
    """Its memory given back, but for a part of 1 / `part`; an empty tensor has none to lose."""
    if value.numel() < 2:
        return "x"
    value = value.clone(memory_format=torch.contiguous_format)
    value.untyped_storage().resize_(value.nbytes // part if part else 0)
    return value


def largest(value: Tensor) -> Tensor:
    """Numbers up to the largest that there are."""
    return ((value.double() - 0.5) * 2 * torch.finfo(value.dtype).max).to(value.dtype)


def subnormal(value: Tensor) -> Tensor:
    info = torch.finfo(value.dtype)
    return (value.double() * 64).to(value.dtype) * (info.smallest_normal * info.eps)


def inference(value: Tensor) -> Tensor:
    with torch.inference_mode():
        return value.clone()


def fake(value: Tensor) -> Tensor:
    with FakeTensorMode() as mode:
        return mode.from_tensor(value)


def nested(value: Tensor, layout: torch.layout) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = [value.new_zeros(2), value.new_zeros(3)]
        return torch.nested.nested_tensor(rows, layout=layout)


def other_tensor(argument: str, values: dict[str, Any]) -> Tensor:
    """Another argument itself, the first that has this shape and dtype."""
    value = values[argument]
    for name, other in values.items():
        same = isinstance(other, Tensor) and (other.shape, other.dtype) == (
            value.shape,
            value.dtype,
        )
        if same and name != argument:
            return other
    return value


def overlapping(argument: str, values: dict[str, Any]) -> Tensor:
    """Memory that begins inside another argument's, which moves to the same memory."""
    value = values[argument]
    others = [
        name
        for name, other in values.items()
        if name != argument and isinstance(other, Tensor) and other.shape == value.shape
        if other.dtype == value.dtype and value.numel() > 1
    ]
    if not others:
        return value
    n = value.numel()
    memory = torch.linspace(0, 1, 2 * n, dtype=torch.float32).to(value.dtype)
    values[others[0]] = memory[:n].view(value.shape)
    return memory[n - 1 : 2 * n - 1].view(value.shape)


def inside_written(argument: str, values: dict[str, Any]) -> Any:
    """An amount that lies in the memory of the batch."""
    batch = values.get("x_adv", values.get("x"))
    return batch.flatten(1)[:, 0] if batch.dim() > 1 and batch.numel() else values[argument]


def amounts_of(argument: str, values: dict[str, Any]) -> Tensor:
    """The argument as a tensor (B,)."""
    value = values[argument]
    batch = next(other for other in values.values() if isinstance(other, Tensor))
    return value if isinstance(value, Tensor) else torch.full(batch.shape[:1], float(value))


def amount(name: str, outcome: str, change: Callable[[Tensor], Any]) -> Change:
    return Change(name, outcome, lambda argument, values: change(amounts_of(argument, values)))


NO_TENSOR = (
    "x",
    True,
    [0.5],
    (),
    {},
    object(),
    np.zeros((2, 3)),
    torch.float32,
    1j,
    Decimal("0.1"),
)

VIEWS = [  # of any floating-point tensor
    own("strided", RIGHT, strided),
    own("shifted", RIGHT, shifted),
    own("negated", RIGHT, lambda v: negated(v) if v.dtype == torch.float32 else v),
    own("subclass", RIGHT, lambda v: v.clone().as_subclass(Subclass)),
    own("inference", EITHER, inference),
    own("parameter", EITHER, lambda v: torch.nn.Parameter(v.clone())),
    own("requires grad", EITHER, lambda v: v.clone().requires_grad_()),
    own("follows grad", EITHER, lambda v: v.clone().requires_grad_() * 1),
    own("meta", EITHER, lambda v: v.to("meta")),
    own("fake", EITHER, fake),
    own("expanded", EITHER, lambda v: v[:1].expand(v.shape) if len(v) else v),
]
WRONG_TENSORS = [
    own("freed", WRONG, freed),
    own("shrunk", WRONG, lambda v: freed(v, 2)),
    own("int64", WRONG, lambda v: v.to(torch.int64)),
    own("bool", WRONG, lambda v: v > 0),
    own("complex", WRONG, lambda v: v.to(torch.complex64)),
    own("conjugate", WRONG, lambda v: v.to(torch.complex64).conj()),
    own("quantised", WRONG, lambda v: torch.quantize_per_tensor(v.float(), 0.1, 0, torch.quint8)),
    own("float8", WRONG, lambda v: v.float().to(torch.float8_e5m2)),
    own("sparse", WRONG, lambda v: v.to_sparse()),
    own("nested", WRONG, lambda v: nested(v, torch.strided)),
    own("jagged", WRONG, lambda v: nested(v, torch.jagged)),
    own("0-d", WRONG, lambda v: torch.zeros((), dtype=v.dtype)),
]
BATCH = [
    *fixed(WRONG, None, 0.5, *NO_TENSOR),
    *VIEWS,
    *WRONG_TENSORS,
    own("fp64", EITHER, lambda v: v.double()),
    own("bf16", EITHER, lambda v: v.bfloat16()),
    own("transposed", RIGHT, lambda v: v.transpose(0, -1).contiguous().transpose(0, -1)),
    own("windows", EITHER, sliding),
    own("one dimension more", EITHER, lambda v: v.unsqueeze(-1)),
    own("one dimension less", EITHER, lambda v: v.flatten()),
    own("one sample more", EITHER, lambda v: torch.cat([v, v.new_zeros((1, *v.shape[1:]))])),
    own("1e30", RIGHT, lambda v: (v.double() * 1e30).to(v.dtype)),
    own("largest", RIGHT, largest),
    own("subnormal", RIGHT, subnormal),
    own("NaN", RIGHT, lambda v: torch.where(v > 0.5, torch.nan, v)),
    own("infinite", RIGHT, lambda v: torch.where(v > 0.5, -torch.inf, v)),
    Change("another argument", EITHER, other_tensor),
    Change("overlapping another", EITHER, overlapping),
]
AMOUNT = [
    *fixed(WRONG, None, *NO_TENSOR, -0.1, -1, float("nan"), float("inf"), -float("inf"), 10**400),
    *fixed(RIGHT, 0, 0.0, -0.0, 1, 5e-324, Fraction(1, 8), np.float32(0.1), np.float64(0.25)),
    *fixed(RIGHT, 1e-40, 1e-310),
    *fixed(WRONG, 1e39, 3e38),
    *fixed(EITHER, np.int64(3), 2**60, 1e30),
    *(
        Change(
            change.name,
            change.outcome,
            lambda argument, values, change=change: change.make(
                argument, values | {argument: amounts_of(argument, values)}
            ),
        )
        for change in (*VIEWS, *WRONG_TENSORS)
    ),
    amount("fp64", RIGHT, lambda v: v.double()),
    amount("bf16", RIGHT, lambda v: v.bfloat16()),
    amount("fp16", RIGHT, lambda v: v.half()),
    amount("one more", WRONG, lambda v: torch.zeros(len(v) + 1)),
    amount("a column", WRONG, lambda v: v.unsqueeze(1)),
    *(amount(f"all {n}", RIGHT, lambda v, n=n: torch.full(v.shape, n)) for n in (-1.0, 1e30, 0.0)),
    *(
        amount(f"all {n}", RIGHT, lambda v, n=n: torch.full(v.shape, n))
        for n in (float("nan"), float("inf"), -float("inf"), 1e-42)
    ),
    Change("inside the batch", EITHER, inside_written),
]
NUMBER = [  # of either sign
    *(change for change in AMOUNT if change.name not in ("-0.1", "-1")),
    *fixed(RIGHT, -0.1, -1, -5e-324, Fraction(-1, 8)),
    *fixed(WRONG, -(10**400)),
]
BOUNDS = [
    *fixed(
        WRONG, None, 0.5, *NO_TENSOR, (1.0, 0.0), (0.5, 0.5), (0.0,), (0.0, 0.5, 1.0), ("0", "1")
    ),
    *fixed(
        WRONG, (float("nan"), 1.0), (0.0, float("nan")), (0.0, float("inf")), (None, 1), (0, 1j)
    ),
    *fixed(WRONG, (torch.tensor(0.0), torch.tensor(1.0)), (False, True), (0, 10**400)),
    *fixed(RIGHT, [0, 1], np.array([0.0, 1.0]), (0.1, 0.9), (0.2, 0.7), (Fraction(0), 1)),
    *fixed(RIGHT, (-1e4, 1e4), (-1e30, 1e30), (-1 / 3, 1 / 3)),
    *fixed(WRONG, (-1e39, 1e39), (1e39, 2e39)),
    *fixed(EITHER, (0.5001, 0.5002), (-5e-324, 5e-324), (0.0, 1e-40), (1e29, 1e30)),
]
GENERATOR = fixed(WRONG, 0, 0.5, *NO_TENSOR, np.random.default_rng(0))
IDS = [
    *fixed(WRONG, 0.5, *NO_TENSOR),
    *fixed(RIGHT, None),
    own("int32", WRONG, lambda v: v.int()),
    own("float", WRONG, lambda v: v.float()),
    own("sparse", WRONG, lambda v: v.to_sparse()),
    own("0-d", WRONG, lambda v: torch.tensor(3)),
    own("one more", WRONG, lambda v: torch.zeros(len(v) + 1, dtype=torch.int64)),
    own("meta", EITHER, lambda v: v.to("meta")),
    own("fake", EITHER, fake),
    own("strided", RIGHT, strided),
    own("expanded", RIGHT, lambda v: v[:1].expand(v.shape) if len(v) else v),
    own("negative", RIGHT, lambda v: v - 2**63),
    own("subclass", RIGHT, lambda v: v.clone().as_subclass(Subclass)),
]
CHANGES = {
    **dict.fromkeys(("x_adv", "x_prev", "grad", "x", "best_x", "best_grad"), BATCH),
    **dict.fromkeys(("best_loss", "loss"), [c for c in BATCH if "dimension" not in c.name]),
    **dict.fromkeys(("eps", "step_size", "momentum", "density"), AMOUNT),
    **dict.fromkeys(("alpha_max", "eta"), AMOUNT),
    "value": NUMBER,
    "bounds": BOUNDS,
    "generator": GENERATOR,
    "sample_ids": IDS,
}
"""What to try for each name of a parameter of a public op."""

"""Every public op against wrong and strange arguments, one at a time and in random combinations.

A call either succeeds with the reference's result on clean copies, and writes nothing else, or
raises an error that names an argument, and changes nothing.
"""

import inspect
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import DTYPES, near
from fuzz_values import CHANGES, RIGHT, WRONG, Change
from torch import Generator, Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from roli_fast import ops
from roli_fast.errors import ArgumentError, ArgumentTypeError
from roli_fast.ops import checks

OPS = {
    name: op
    for name, op in vars(ops).items()
    if name in ops.native.OPS and not name.startswith("lora")  # those: test_fuzz_lora.py
}
WRITTEN = {
    "apgd_linf_step_": ("x_prev",),
    "apgd_l2_step_": ("x_prev",),
    "select_best_": ("best_x", "best_grad", "best_loss"),
}
"""Which arguments an op writes, where it is not just `x_adv` (or none: a name without _)."""
SHAPES = ((2, 3, 4, 5), (3, 7), (1, 1), (5,), (0, 3, 2), (2, 0), (4, 1, 1, 3))
CALLS = 100
"""Random calls for each op, some seconds in all; the slow test makes 100,000."""
NUMBERS = {"eps": 0.1, "step_size": 0.03, "momentum": 0.75, "density": 0.3}
NUMBERS |= {"value": -0.2, "alpha_max": 0.1, "eta": 1.05}


def written_by(op: str) -> tuple[str, ...]:
    return WRITTEN.get(op, ("x_adv",) if op.endswith("_") else ())


def good(op: str, rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of a call that has to succeed."""
    generator = torch.Generator().manual_seed(rng.randrange(2**32))

    def tensor(name: str) -> Tensor:
        value = torch.rand(shape[:1] if "loss" in name else shape, generator=generator)
        value = (value - 0.5 if "grad" in name else value).to(dtype)
        nhwc = value.dim() == 4 and rng.random() < 0.2
        return value.contiguous(memory_format=torch.channels_last) if nhwc else value

    def amount(name: str) -> float | Tensor:
        if rng.random() < 0.6:
            return NUMBERS[name]
        return torch.rand(shape[:1], generator=generator).to(rng.choice(DTYPES))

    values: dict[str, Any] = {}
    for name in inspect.signature(OPS[op]).parameters:
        if name in NUMBERS:
            values[name] = amount(name)
        elif name == "bounds":
            values[name] = (0.0, 1.0)
        elif name == "generator":
            values[name] = torch.Generator().manual_seed(rng.randrange(2**32))
        elif name == "sample_ids":
            values[name] = torch.randint(2**60, shape[:1], generator=generator)
        else:
            values[name] = tensor(name)
    return values


def call(op: str, values: dict[str, Any]) -> Tensor:
    positional, named = [], {}
    for name, parameter in inspect.signature(OPS[op]).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            named[name] = values[name]
        else:
            positional.append(values[name])
    return OPS[op](*positional, **named)


def readable(value: object) -> bool:
    """Whether there are numbers to compare."""
    if not isinstance(value, Tensor) or isinstance(value, FakeTensor) or value.is_meta:
        return False
    if value.layout is not torch.strided or value.is_nested:
        return True
    first = value.storage_offset() * value.element_size()
    return value.untyped_storage().nbytes() >= first + checks._reach(value)


def clean(value: object) -> object:
    """A copy without peculiarities; a generator in the same state."""
    if isinstance(value, Generator):
        return Generator().set_state(value.get_state())
    if not readable(value) or value.is_nested or value.layout is not torch.strided:
        return value
    with torch.no_grad():
        plain = value.as_subclass(Tensor).detach().resolve_neg()
        return plain.clone(memory_format=torch.contiguous_format)


def memory_of(value: Tensor) -> Tensor:
    """All of the memory that the tensor is a view of, in its dtype."""
    plain = value.as_subclass(Tensor).detach()
    if plain.is_neg():
        return plain
    whole = plain.untyped_storage().nbytes() // plain.element_size()
    return plain.as_strided((whole,), (1,), 0)


def same(actual: Tensor, expected: Tensor) -> bool:
    if actual.dtype.is_floating_point:
        return bool(((actual == expected) | (actual.isnan() & expected.isnan())).all())
    return torch.equal(actual, expected)


def has_memory(value: object) -> bool:
    return readable(value) and not value.is_nested and value.layout is torch.strided


def snapshot(values: dict[str, Any]) -> dict[str, Any]:
    """What a refused call may not change; one copy for all tensors of one memory."""
    copies: dict[tuple, Tensor] = {}
    before: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Generator):
            before[name] = value.get_state()
        elif has_memory(value):
            memory = memory_of(value)
            place = (value.untyped_storage().data_ptr(), memory.dtype, value.is_neg())
            before[name] = copies.setdefault(place, memory.clone())
    return before


def check_refusal(values: dict[str, Any], before: dict[str, Any], error: Exception) -> str:
    named = re.match(r"`(\w+)`: expected ", str(error))
    assert named and named[1] in values, f"the message names no argument: {error}"
    for name, memory in before.items():
        value = values[name]
        now = value.get_state() if isinstance(value, Generator) else memory_of(value)
        assert same(now, memory), f"{name} was changed by a refused call"
    return named[1]


def check_success(op: str, values: dict, copies: dict, before: dict, result: Tensor) -> None:
    """`result` and every argument are as the reference leaves them on clean copies."""
    if not all(readable(v) for v in (*values.values(), result) if isinstance(v, Tensor)):
        return
    with torch.no_grad(), ops.use_backend("reference"):
        expected = call(op, copies)
    scale = max(1.0, *(abs(float(end)) for end in copies.get("bounds", (0, 1))))
    numbers = [(clean(result), expected)]
    for name in set(before).intersection(written_by(op)):
        view = values[name].as_subclass(Tensor).detach()
        numbers.append((clean(values[name]), copies[name]))
        if view.is_neg():
            before[name] = view
        else:  # around it, memory is what it was
            place = before[name].as_strided(view.shape, view.stride(), view.storage_offset())
            place.copy_(view)
    if "fab" in op and not all(map(ordinary, copies.values())):
        numbers = []  # sums of numbers of all sizes: box and NaN are looked at elsewhere
    for found, right in numbers:
        alike = same if found.dtype == torch.bool or "select" in op else near
        assert alike(found, right, *[scale] * (alike is near)), "it is not the reference's result"
    for name, memory in before.items():
        if not isinstance(values[name], Generator):
            assert same(memory_of(values[name]), memory), f"{name} is not as it should be"


def ordinary(value: object) -> bool:
    """Whether numbers are neither tiny nor huge."""
    if isinstance(value, tuple | list) or not isinstance(value, Tensor | float | int):
        return True
    size = torch.as_tensor(value).double().abs()
    return bool(((size == 0) | ((size > 1e-6) & (size < 1e3)) | ~size.isfinite()).all())


def check_ball_and_box(op: str, given: dict[str, Any], result: Tensor) -> None:
    """Exactly, for the samples of finite numbers that begin in the box."""
    x, moved = given["x"], clean(result)
    if not moved.numel():
        return
    low, high = torch.tensor([float(end) for end in given["bounds"]], dtype=x.dtype)
    box = (x >= low) & (x <= high) & x.isfinite()
    good = box.flatten(1).all(1) if x.dim() > 1 else box
    for name, value in given.items():
        if isinstance(value, Tensor) and name != "sample_ids":
            # x_adv may lie anywhere, so differences of its numbers may overflow in fp32
            small = value.double().abs() <= (1e30 if value.dtype != torch.float64 else 1e150)
            good = good & (small.flatten(1).all(1) if value.dim() > 1 else small)
    moved, x = (value[good].unsqueeze(1).flatten(1) for value in (moved, x))
    if not moved.numel():
        return
    assert ((moved >= low) & (moved <= high)).all(), "a result is outside the box"
    if "eps" not in given:
        return
    wide = torch.float64 if moved.dtype == torch.float64 else torch.float32
    radius = torch.as_tensor(given["eps"], dtype=torch.float64).expand(len(good))[good]
    radius = radius.to(wide).double()
    radius = torch.where(radius < 0, torch.inf, radius)  # no ball: nobody looks into tensors
    change = (moved.double() - x.double()).abs()
    if "linf" in op:
        length = change.amax(1)
    else:
        length = change.sum(1) if "l1" in op else change.square().sum(1).sqrt()
        radius = radius * (1 + 1e-14) + 1e-300  # of this sum; squares below 1e-154 are lost to it
    assert (length <= radius).all(), f"a result is outside the ball: {length}, {radius}"


class Passing(TorchDispatchMode):
    """A dispatch mode that changes nothing."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SETTINGS: dict[str, Any] = {
    "usual": nullcontext,
    "no grad": torch.no_grad,
    "a dispatch mode": Passing,
    "meta as default device": lambda: torch.device("meta"),
    "fp16 as default dtype": lambda: default_dtype(torch.float16),
    "inference mode": torch.inference_mode,
    "a fake mode": FakeTensorMode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "the reference": lambda: ops.use_backend("reference"),
}
"""Where a call is made: it changes nothing, but that a fake mode refuses real tensors."""


def trial(op: str, values: dict[str, Any], changes: dict[str, Change], setting: str) -> str:
    given = dict(values)
    for name, change in changes.items():
        values[name] = change.make(name, given)
    values = {**given, **{name: values[name] for name in changes}}  # `make` may move others
    copies, before = {name: clean(value) for name, value in values.items()}, snapshot(values)
    only = next(iter(changes.items())) if len(changes) == 1 else None
    story = f"{op}, { ({n: c.name for n, c in changes.items()}) }, {setting}"
    plain = {name: clean(value) for name, value in values.items()}
    try:
        with SETTINGS[setting]():
            result = call(op, values)
    except (ArgumentError, ArgumentTypeError) as error:
        named = check_refusal(values, before, error)
        if setting != "a fake mode":
            assert not only or only[1].outcome != RIGHT, f"{story}: refused: {error}"
            assert not only or only[1].outcome != WRONG or named == only[0], f"{story}: {error}"
        return "refused"
    except Exception as error:
        raise AssertionError(f"{story}: {type(error).__name__}: {error}") from error
    assert not only or only[1].outcome != WRONG, f"{story}: was taken"
    try:
        if setting == "a fake mode":
            return "fake"
        check_success(op, values, copies, before, result)
        if "bounds" in values and all(
            readable(v) for v in values.values() if isinstance(v, Tensor)
        ):
            check_ball_and_box(op, plain, result)
    except AssertionError as error:
        raise AssertionError(f"{story}: {error}") from error
    return "taken"


def test_every_public_op_is_here():
    assert {*OPS, "lora_linear", "lora_merge_"} == set(ops.native.OPS)
    for op in OPS.values():
        assert set(inspect.signature(op).parameters) <= set(CHANGES), op


@pytest.mark.parametrize("op", OPS)
def test_one_change(op):
    rng = random.Random(op)
    for name in inspect.signature(OPS[op]).parameters:
        for change in CHANGES[name]:
            values = good(op, rng, SHAPES[0], rng.choice(DTYPES))
            trial(op, values, {name: change}, rng.choice(("usual", "no grad")))


@pytest.mark.parametrize("op", OPS)
def test_random_changes(op):
    rng = random.Random(op)
    for _ in range(CALLS):
        random_trial(op, rng)


def random_trial(op: str, rng: random.Random) -> str:
    """A call with up to three changes in a random setting: "taken", "refused" or "fake"."""
    names = list(inspect.signature(OPS[op]).parameters)
    values = good(op, rng, rng.choice(SHAPES), rng.choice(DTYPES))
    chosen = rng.sample(names, rng.randrange(min(4, len(names) + 1)))
    changes = {name: rng.choice(CHANGES[name]) for name in chosen}
    return trial(op, values, changes, rng.choice(list(SETTINGS)))


@pytest.mark.slow
def test_a_hundred_thousand_calls():
    """In a process of its own: a crash is a failure like any other."""
    command = [sys.executable, str(Path(__file__).with_name("hostile_calls.py")), "100000"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout[-2000:]} {done.stderr[-2000:]}"

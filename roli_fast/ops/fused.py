"""The one decorator of every op that updates a batch: checks, kernel or reference, operator."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from roli_fast.ops import checks, native
from roli_fast.ops.memory import (
    Amount,
    addresses_of,
    dense,
    finish,
    fp32,
    plain,
    separate_addresses,
)
from roli_fast.ops.rounding import box_limits, compute_dtype

Bounds = tuple[float, float]

Launch = Callable[[str, Tensor, Sequence[int], Sequence[Amount], Bounds], None]
"""(kernel, tensor for size and device, addresses of dense memory, fp32 amounts, box)."""

CHECKS = {
    "eps": checks.amount,
    "step_size": checks.amount,
    "density": checks.fraction,
    "momentum": checks.fraction,
    "value": checks.number,
    "alpha_max": checks.fraction,
    "eta": checks.amount,
}


def launch(
    kernel: str,
    target: Tensor,
    addresses: Sequence[int],
    amounts: Sequence[Amount],
    box: Bounds,
    *more: float,
) -> None:
    """What every kernel takes, and `more` where it takes more."""
    size, numbers = native.size(target), native.amounts(*amounts)
    native.run(kernel, target, *addresses, *size, *numbers, *box, *more)


def fused(launch: Launch = launch, written: str = "x_adv") -> Callable[[Callable], Callable]:
    """Decorates the reference of an op, and returns the op.

    The reference is a plain function of the tensors (B, ...), the first of them `x_adv`, of amounts
    by keyword and of `bounds`; it returns, as a new tensor, what the op writes into `written`.
    Kernel and reference agree within one spacing of the storage dtype. The op

    - checks types, dtypes, devices, shapes, numbers and shared memory;
    - runs the kernel of its name where there is one for this device and dtype, else the reference;
    - is an operator, torch.ops.roli_fast.<name>, in graphs and wherever torch follows operators;
    - has the reference as `.reference`.
    """

    def decorate(reference: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return functools.wraps(reference)(_Update(reference, launch, written).function())

    return decorate


class _Update:
    """One op that updates a batch."""

    def __init__(self, reference: Callable[..., Tensor], launch: Launch, written: str) -> None:
        self.name, self.reference, self.launch = reference.__name__, reference, launch
        self.signature = inspect.signature(reference)
        parameters = self.signature.parameters.values()
        self.tensors = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        self.amounts = [p.name for p in parameters if p.name in CHECKS]
        self.written = written
        self.operator = self._operator()

    def function(self) -> Callable[..., Tensor]:
        """The public op."""
        count, names = len(self.tensors), (*self.tensors, *self.amounts)

        def op(*images: Any, bounds: Any = (0.0, 1.0), **named: Any) -> Tensor:
            if len(images) != count or len(named) != len(self.amounts):
                given = self.signature.bind(*images, **named).arguments
                images = tuple(given[name] for name in self.tensors)
                named = {name: given[name] for name in self.amounts}
            return self(images, named, bounds)

        op.reference = self.reference  # type: ignore[attr-defined]
        assert len(names) + 1 == len(self.signature.parameters)
        return op

    def __call__(self, values: tuple[Any, ...], named: dict[str, Any], bounds: Any) -> Tensor:
        """Check, then update."""
        images = dict(zip(self.tensors, values, strict=True))
        x_adv = values[0]
        checks.batch("x_adv", x_adv)
        for name in self.tensors[1:]:
            checks.same_kind(name, images[name], x_adv)
        try:
            numbers = {name: CHECKS[name](name, named[name], x_adv) for name in self.amounts}
        except KeyError:
            self.signature.bind(*values, **named)  # raises Python's own TypeError
            raise
        box = checks.pair(bounds)
        if torch.is_grad_enabled():
            checks.no_autograd(**images)
        first = {self.written: images[self.written]}  # of those that are wrong it is named
        if checks.seen(**(first | images), **numbers) and checks.can_be_written(*first.values()):
            amounts = [as_tensor(number, x_adv) for number in numbers.values()]
            self.operator(*values, *amounts, *box)
            return images[self.written]
        return self.update(images, numbers, box)

    def update(
        self, images: dict[str, Tensor], amounts: dict[str, Amount], bounds: Bounds
    ) -> Tensor:
        """Make the update and return the tensor that is written.

        Types, dtypes, devices and shapes have been checked, memory has not. An amount is a float,
        or a tensor of shape (B,) or (1,).
        """
        written = images[self.written]
        others = {name: image for name, image in images.items() if name != self.written}
        values, numbers = (written, *others.values()), tuple(amounts.values())
        box = box_limits(*bounds, written.dtype)
        addresses = addresses_of(*values)
        usual = addresses is not None and _ready(written, numbers)
        if not usual:
            checks.writable(self.written, written)
            checks.apart(self.written, written, **others, **amounts)
            if written.numel() == 0:
                return written
        if not (usual or plain(*values, *numbers)) or not native.usable(self.name, written):
            written.copy_(self.reference(**images, **amounts, bounds=bounds))
            return written
        if not usual:
            values, numbers = dense(*values), [fp32(number) for number in numbers]
            addresses = [value.data_ptr() for value in values]
        assert addresses is not None
        self.launch(self.name[:-1], values[0], addresses, numbers, box)
        finish(written, values[0])
        return written

    def _operator(self) -> Callable[..., None]:
        """roli_fast::<name> without the check that autograd is off.

        Amounts are tensors, (1,) or (B,): a Python number would make one graph for every value. The
        schema is written out because the rule does not name its arguments.
        """
        tensors, amounts = self.tensors, self.amounts
        arguments = [f"Tensor{'(a!)' if name == self.written else ''} {name}" for name in tensors]
        arguments += [f"Tensor {name}" for name in amounts] + ["float low", "float high"]

        def checked(values: tuple[Any, ...]) -> tuple[dict[str, Tensor], dict[str, Amount]]:
            images = dict(zip(tensors, values[: len(tensors)], strict=True))
            numbers = dict(zip(amounts, values[len(tensors) : -2], strict=True))
            check_batch(images["x_adv"], images, numbers)
            return images, numbers

        def run(*values: Any) -> None:
            self.update(*checked(values), values[-2:])

        def fake(*values: Any) -> None:
            images, _ = checked(values)
            box_limits(*values[-2:], images["x_adv"].dtype)

        schema = f"({', '.join(arguments)}) -> ()"
        operator = torch.library.custom_op(
            f"roli_fast::{self.name}", run, mutates_args=(self.written,), schema=schema
        )
        operator.register_fake(fake)
        return operator


def _ready(written: Tensor, numbers: Sequence[Amount]) -> bool:
    """Whether a kernel can take the amounts as they are: floats, or fp32 apart from `written`."""
    tensors = [value for value in numbers if type(value) is not float]
    if not tensors:
        return True
    fits = all(type(value) is Tensor and value.dtype is torch.float32 for value in tensors)
    return fits and separate_addresses((written,), tensors) is not None  # pyright: ignore


def as_tensor(value: Amount, x: Tensor) -> Tensor:
    """`value` as an operator takes it.

    A sum, because torch.full and torch.tensor make the number a constant of the graph.
    """
    if isinstance(value, Tensor):
        return value
    return torch.zeros((1,), dtype=compute_dtype(x.dtype), device=x.device) + value


def check_batch(
    x_adv: Tensor, others: dict[str, Tensor], amounts: dict[str, Any], name: str = "x_adv"
) -> None:
    """The checks of the public ops for callers of an operator, where amounts may also be (1,)."""
    checks.batch(name, x_adv)
    for other, value in others.items():
        checks.same_kind(other, value, x_adv)
    for amount, value in amounts.items():
        whole = value.expand(x_adv.shape[0]) if value.shape == (1,) else value
        checks.amount(amount, whole, x_adv)

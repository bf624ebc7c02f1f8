"""The one decorator of every op that updates a batch: checks, kernel or reference, operator."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from roli_fast.ops import checks, native
from roli_fast.ops.checks import Amount, addresses_of, finish, fp32, layout_of, plain
from roli_fast.ops.rounding import box_limits, compute_dtype

Bounds = tuple[float, float]

Launch = Callable[[str, Tensor, Sequence[int], Sequence[Amount], Bounds], None]
"""(kernel, tensor for size and device, addresses of dense memory, fp32 amounts, box)."""

RANGES = {
    "eps": checks.SIZE,
    "step_size": checks.SIZE,
    "density": checks.SHARE,
    "momentum": checks.SHARE,
    "value": checks.FINITE,
    "alpha_max": checks.SHARE,
    "eta": checks.SIZE,
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
        self.amounts = [p.name for p in parameters if p.name in RANGES]
        self.written = written  # first in every dict of images, so that errors name it first
        self.order = sorted(self.tensors, key=lambda name: name != written)
        self.operator = self._operator()

    def function(self) -> Callable[..., Tensor]:
        """The public op."""

        def op(*images: Any, bounds: Any = (0.0, 1.0), **named: Any) -> Tensor:
            if len(images) != len(self.tensors) or len(named) != len(self.amounts):
                given = self.signature.bind(*images, **named).arguments
                images = tuple(given[name] for name in self.tensors)
                named = {name: given[name] for name in self.amounts}
            return self(images, named, bounds)

        op.reference = self.reference  # type: ignore[attr-defined]
        return op

    def __call__(self, values: tuple[Any, ...], named: dict[str, Any], bounds: Any) -> Tensor:
        """Check, then update."""
        images = self.named(values)
        try:
            numbers, box = self.check(images, named), checks.pair(bounds)
        except KeyError:
            self.signature.bind(*values, **named)  # raises Python's own TypeError
            raise
        if torch.is_grad_enabled():
            checks.no_autograd(**images)
        written = images[self.written]
        if checks.seen(**images, **numbers) and checks.can_be_written(written):
            amounts = [as_tensor(number, written) for number in numbers.values()]
            self.operator(*values, *amounts, *box)
            return written
        return self.update(images, numbers, box)

    def named(self, values: Sequence[Any]) -> dict[str, Any]:
        """The images by name, the one that is written first."""
        images = dict(zip(self.tensors, values, strict=True))
        return images if self.written == "x_adv" else {name: images[name] for name in self.order}

    def check(self, images: dict[str, Any], named: dict[str, Any]) -> dict[str, Amount]:
        """The amounts, in order, after checking them and the images."""
        x_adv = images["x_adv"]
        checks.batch("x_adv", x_adv)
        for name, image in images.items():
            if image is not x_adv:
                checks.same_kind(name, image, x_adv)
        return {
            name: checks.amount(name, named[name], x_adv, RANGES[name]) for name in self.amounts
        }

    def update(
        self, images: dict[str, Tensor], amounts: dict[str, Amount], bounds: Bounds
    ) -> Tensor:
        """Make the update and return the tensor that is written, the first of the images.

        Types, dtypes, devices and shapes have been checked, memory has not. An amount is a float,
        or a tensor of shape (B,) or (1,).
        """
        values, numbers = list(images.values()), list(amounts.values())
        written, *others = values
        box = box_limits(*bounds, written.dtype)
        parts = [number for number in numbers if type(number) is not float]
        addresses = addresses_of((written,), (*others, *parts))
        usual = addresses is not None and all(part.dtype is torch.float32 for part in parts)
        if not usual:
            checks.writable(self.written, written)
            named = {name: image for name, image in images.items() if name != self.written}
            checks.apart(self.written, written, **named, **amounts)
            if written.numel() == 0:
                return written
        if not (usual or plain(*values, *numbers)) or not native.usable(self.name, written):
            written.copy_(self.reference(**images, **amounts, bounds=bounds))
            return written
        if not usual:
            layout = layout_of(written)
            values = [value.contiguous(memory_format=layout) for value in values]
            addresses = [value.data_ptr() for value in values]
            numbers = [fp32(number) for number in numbers]
        self.launch(self.name[:-1], values[0], addresses[: len(values)], numbers, box)
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
            images = self.named(values[: len(tensors)])
            numbers = dict(zip(amounts, values[len(tensors) : -2], strict=True))
            self.check(images, {name: for_all(value, values[0]) for name, value in numbers.items()})
            return images, numbers

        def run(*values: Any) -> None:
            self.update(*checked(values), values[-2:])

        def fake(*values: Any) -> None:
            checked(values)
            box_limits(*values[-2:], values[0].dtype)

        schema = f"({', '.join(arguments)}) -> ()"
        operator = torch.library.custom_op(
            f"roli_fast::{self.name}", run, mutates_args=(self.written,), schema=schema
        )
        operator.register_fake(fake)
        return operator


def as_tensor(value: Amount, x: Tensor) -> Tensor:
    """`value` as an operator takes it.

    A sum, because torch.full and torch.tensor make the number a constant of the graph.
    """
    if isinstance(value, Tensor):
        return value
    return torch.zeros((1,), dtype=compute_dtype(x.dtype), device=x.device) + value


def for_all(value: Tensor, x: Tensor) -> Tensor:
    """An operator's amount, (B,) or (1,), as the public op takes it: (B,)."""
    return value.expand(x.shape[:1]) if value.shape == (1,) and x.ndim else value

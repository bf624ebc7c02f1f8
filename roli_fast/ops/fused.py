"""What every op does around its formula: checks, kernel or reference, an operator of torch.

`fused` makes an op of a reference. Checks name the argument; whatever a kernel cannot take as it
lies in memory is copied first, or goes to the reference.
"""

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.nn import Parameter

from roli_fast.errors import ArgumentError, ArgumentTypeError, describe
from roli_fast.ops import native
from roli_fast.ops.rounding import LARGEST, box_limits, compute_dtype

Amount = float | Tensor
"""A number for the whole batch, or a tensor (B,)."""
Bounds = tuple[float, float]
"""Lowest and highest valid pixel value."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Range(NamedTuple):
    """Which numbers an argument may be."""

    expected: str
    low: float
    high: float


SIZE = Range("a number >= 0", 0.0, LARGEST)
SHARE = Range("a number in [0, 1]", 0.0, 1.0)
FINITE = Range("a finite number", -LARGEST, LARGEST)
RANGES = {
    "eps": SIZE,
    "step_size": SIZE,
    "density": SHARE,
    "momentum": SHARE,
    "value": FINITE,
    "alpha_max": SHARE,
    "eta": SIZE,
}
"""The amounts of all ops that update a batch."""


def fused(written: str = "x_adv", *, sums: bool = False) -> Callable[[Callable], Callable]:
    """Decorates the reference of an op, and returns the op.

    The reference is a plain function of the tensors (B, ...), of amounts by keyword and of
    `bounds`; it returns, as a new tensor, what the op writes into `written`. Kernel and reference
    agree within one spacing of the storage dtype. The op

    - checks types, dtypes, devices, shapes, numbers and shared memory;
    - runs the kernel of its name where there is one for this device and dtype, else the reference;
    - is an operator, torch.ops.roli_fast.<name>, where torch compiles, traces or watches;
    - has the reference as `.reference`.

    Args:
        written: name of the tensor that is written.
        sums: whether its CUDA kernel needs memory for partial sums of every sample.
    """

    def decorate(reference: Callable[..., Tensor]) -> Callable[..., Tensor]:
        update = _Update(reference, written, sums)

        @functools.wraps(reference)
        def op(*images: Any, bounds: Any = (0.0, 1.0), **named: Any) -> Tensor:
            amounts: list[Any] = []
            try:
                amounts = [named[name] for name in update.amounts]
                usual = len(images) == len(update.tensors) and len(named) == len(amounts)
            except KeyError:
                usual = False
            if not usual:
                given = update.signature.bind(*images, **named).arguments
                images = tuple(given[name] for name in update.tensors)
                amounts = [given[name] for name in update.amounts]
            return update(images, amounts, bounds)

        op.reference = reference  # type: ignore[attr-defined]
        return op

    return decorate


class _Update:
    """One op that updates a batch."""

    def __init__(self, reference: Callable[..., Tensor], written: str, sums: bool) -> None:
        self.name, self.kernel = reference.__name__, reference.__name__[:-1]
        self.reference, self.sums = reference, sums
        self.signature = inspect.signature(reference)
        parameters = self.signature.parameters.values()
        self.tensors = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        self.amounts = [p.name for p in parameters if p.name in RANGES]
        self.ranges = [RANGES[name] for name in self.amounts]
        self.place = self.tensors.index(written)
        self.operator = self._operator()

    def __call__(self, images: Sequence[Any], amounts: list[Any], bounds: Any) -> Tensor:
        """Check, then update."""
        watched = native.watched()
        addresses = None if watched else self.usual(images, amounts)
        if addresses is not None:
            written = images[self.place]
            self.launch(written, addresses, amounts, box_limits(*bounds, written.dtype))
            increment_version(written)
            return written
        amounts = self.check(images, amounts)
        written = images[self.place]
        if torch.is_grad_enabled():
            check_no_autograd(**dict(zip(self.tensors, images, strict=True)))
        if watched and can_be_followed(written):
            given = [as_tensor(amount, written) for amount in amounts]
            if not torch.compiler.is_compiling():
                box_limits(*bounds, written.dtype)  # else torch refuses them in its own words
            self.operator(*images, *given, *bounds)
        else:
            self.update(images, amounts, bounds)
        return written

    def usual(self, images: Sequence[Any], amounts: Sequence[Any]) -> list[int] | None:
        """Addresses of the images where the kernel takes all arguments as they are, else None."""
        first = images[0]
        if type(first) is not Tensor or not first.ndim or not native.has_kernel(self.name, first):
            return None
        addresses = addresses_of(images, first)
        if addresses is None:
            return None
        tensors = []
        for amount, among in zip(amounts, self.ranges, strict=True):
            if type(amount) is not float:
                tensors.append(amount)
            elif not among.low <= amount <= among.high:
                return None
        memory, size = addresses, first.nbytes
        if tensors:
            found = addresses_of(tensors, first, torch.float32, first.shape[:1])
            if found is None:
                return None
            memory, size = addresses + found, max(size, 4 * len(first))
        start, near = addresses[self.place], 0
        for other in memory:
            near += -size < other - start < size
        return None if near > 1 or images[self.place].is_inference() else addresses

    def check(self, images: Sequence[Any], amounts: Sequence[Any]) -> list[Amount]:
        """The amounts, after checking them and the images."""
        first, *others = images
        check_batch(self.tensors[0], first)
        for name, image in zip(self.tensors[1:], others, strict=True):
            check_like(name, image, first)
        named = zip(self.amounts, amounts, self.ranges, strict=True)
        return [check_amount(name, amount, first, among) for name, amount, among in named]

    def update(self, images: Sequence[Tensor], amounts: Sequence[Amount], bounds: Bounds) -> None:
        """Write the result. Arguments have been checked, their memory has not.

        An amount is a float, or a tensor of shape (B,) or (1,).
        """
        written = images[self.place]
        box = box_limits(*bounds, written.dtype)
        named = dict(zip((*self.tensors, *self.amounts), (*images, *amounts), strict=True))
        check_apart(self.tensors[self.place], **named)
        if written.numel() == 0:
            return
        if plain(*images, *amounts) and native.usable(self.name, written):
            layout = layout_of(written)
            dense = [image.contiguous(memory_format=layout) for image in images]
            addresses = [image.data_ptr() for image in dense]
            self.launch(dense[self.place], addresses, [fp32(n) for n in amounts], box)
            finish(written, dense[self.place])
        else:
            written.copy_(self.reference(**named, bounds=bounds))

    def launch(
        self, target: Tensor, addresses: Sequence[int], amounts: Sequence[Amount], box: Bounds
    ) -> None:
        """Run the kernel on dense memory; amounts are floats or contiguous fp32."""
        size, given = native.size(target), native.amounts(amounts)
        if self.sums and target.is_cuda:
            sums = (target.shape[0], target.numel() // target.shape[0])
            space = native.workspace(target, torch.float64, "reduction_workspace", *sums)
            native.run(self.kernel, target, *addresses, *size, *given, *box, space.data_ptr())
        else:
            native.run(self.kernel, target, *addresses, *size, *given, *box)

    def _operator(self) -> Callable[..., None]:
        """roli_fast::<name>, without the check that autograd is off.

        Amounts are tensors, (1,) or (B,): a Python number would make one graph for every value. The
        schema is written out because `run` does not name its arguments.
        """
        count, written = len(self.tensors), self.tensors[self.place]
        arguments = [f"Tensor{'(a!)' if n == written else ''} {n}" for n in self.tensors]
        arguments += [f"Tensor {name}" for name in self.amounts] + ["float low", "float high"]

        def check(values: tuple[Any, ...]) -> None:
            given = values[count:-2]
            self.check(values[:count], [for_all(amount, values[0]) for amount in given])

        def run(*values: Any) -> None:
            check(values)
            self.update(values[:count], values[count:-2], values[-2:])

        def fake(*values: Any) -> None:
            check(values)
            box_limits(*values[-2:], values[0].dtype)

        operator = torch.library.custom_op(
            f"roli_fast::{self.name}",
            run,
            mutates_args=(written,),
            schema=f"({', '.join(arguments)}) -> ()",
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


def check_tensor(
    name: str,
    value: Any,
    dtypes: Sequence[torch.dtype] = DTYPES,
    shape: Sequence[int] | None = None,
    device: torch.device | None = None,
) -> None:
    """`value` is a dense tensor of one of `dtypes` that has its memory; where given, of `shape` and
    on `device`."""
    good = isinstance(value, Tensor) and value.dtype in dtypes
    good = good and (device is None or value.device == device)
    good = good and value.layout is torch.strided and not value.is_nested
    if not good or (shape is not None and value.shape != shape):
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        expected = f"a dense {expected} tensor"
        expected += "" if shape is None else f" of shape {tuple(shape)}"
        expected += "" if device is None else f" on {device}"
        got = type(value).__name__
        if isinstance(value, Tensor):
            kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
            size = "" if value.is_nested else f" of shape {tuple(value.shape)}"
            got = f"a {kind} {value.dtype} tensor{size} on {value.device}"
        error = ArgumentError if good else ArgumentTypeError
        raise error(describe(name, expected, got))
    if not torch.compiler.is_compiling() and type(value) in (Tensor, Parameter):
        try:
            held = value.untyped_storage().nbytes()
        except (RuntimeError, NotImplementedError):  # wrapped by torch.func
            return
        reach = _reach(value)
        if reach and held < value.storage_offset() * value.element_size() + reach:
            fix = "Its storage was resized; fill it before the call."
            got = f"{held} bytes for {value.nbytes}"
            raise ArgumentError(describe(name, "a tensor that has its memory", got, fix))


def check_batch(name: str, value: Any) -> None:
    """`value` is a dense floating-point tensor of shape (B, ...)."""
    check_tensor(name, value)
    if value.ndim < 1:
        raise ArgumentError(describe(name, "a batch of shape (B, ...)", "a scalar"))


def check_like(name: str, value: object, other: Tensor) -> None:
    """`value` is a dense tensor with the dtype, device and shape of `other`."""
    check_tensor(name, value, (other.dtype,), other.shape, other.device)


def check_sample_ids(value: object, x: Tensor) -> None:
    """`value` is None or an int64 tensor (B,) where `x` is."""
    if value is not None:
        check_tensor("sample_ids", value, (torch.int64,), x.shape[:1], x.device)


def check_generator(value: object, x: Tensor) -> None:
    """`value` is None or a torch.Generator on the device of `x`."""
    good = isinstance(value, torch.Generator) and value.device.type == x.device.type
    if value is not None and not good:
        expected = f"a torch.Generator on {x.device}, where `x` is, or None"
        raise ArgumentTypeError(describe("generator", expected, getattr(value, "device", value)))


def check_amount(name: str, value: object, x: Tensor, among: Range = SIZE) -> Amount:
    """`value`: a number of `among` (returned as float), or a float tensor (B,) where `x` is.

    The numbers inside a tensor are not looked at: on a GPU that would wait for the device.
    """
    if type(value) is float and among.low <= value <= among.high:
        return value  # first, so that torch.compile keeps it a variable of the graph
    if not isinstance(value, Tensor):
        return check_number(name, value, among, " or a tensor of shape (B,)")
    check_tensor(name, value, shape=x.shape[:1], device=x.device)
    if torch.is_grad_enabled():
        check_no_autograd(**{name: value})
    return value


def check_number(name: str, value: Any, among: Range = FINITE, else_: str = "") -> float:
    """`value` is a number of `among`; returned as float."""
    fix = "Write 8/255 for pixel units." if among is SIZE else ""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        got = type(value).__name__
        raise ArgumentTypeError(describe(name, among.expected + else_, got, fix))
    number: Any = value
    found = float(number) if abs(number) <= LARGEST else math.inf
    if not among.low <= found <= among.high:
        raise ArgumentError(describe(name, among.expected + else_, value, fix))
    return found


def check_no_autograd(**values: Tensor) -> None:
    """Refuse a tensor that autograd would have to follow: the op has no derivative."""
    for name, value in values.items():
        if value.requires_grad:
            fix = "Call the op under torch.no_grad(), or pass tensor.detach()."
            raise ArgumentError(
                describe(name, "a tensor without requires_grad", "one that requires grad", fix)
            )


def check_apart(written: str, /, **values: object) -> None:
    """`values[written]` may be written, and no other tensor among `values` shares its memory.

    Ranges from the first to the last byte are compared, so interleaved views count as shared.
    """
    target: Any = values[written]
    if target.is_inference() and not torch.is_inference_mode_enabled():
        fix = "Clone it outside of torch.inference_mode()."
        raise ArgumentError(describe(written, "a normal tensor", "an inference tensor", fix))
    reach = 0  # of the dimensions so far, in elements
    for step, size in sorted(zip(target.stride(), target.shape, strict=True)):
        if size > 1 and step <= reach:
            got, fix = "one that overlaps itself, or an expanded one", f"Pass {written}.clone()."
            raise ArgumentError(describe(written, "elements with memory of their own", got, fix))
        reach += (size - 1) * step
    start, end = address(target), address(target) + _reach(target)
    for name, value in values.items():
        if name == written or not isinstance(value, Tensor):
            continue
        other = address(value)
        if value is target or (start and other < end and start < other + _reach(value)):
            expected = f"memory apart from `{written}`, which is written"
            fix = f"Pass {written}.clone() as `{written}`, or another tensor here."
            raise ArgumentError(describe(name, expected, "shared memory", fix))


def _reach(value: Tensor) -> int:
    """Bytes from the first element to the end of the last; 0 if there are none."""
    if value.numel() == 0:
        return 0
    last = sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True))
    return (last + 1) * value.element_size()


def can_be_followed(*written: Tensor) -> bool:
    """Whether an operator can write these: torch's fallback for views that negate fails there."""
    return torch.compiler.is_compiling() or not any(value.is_neg() for value in written)


def address(value: Tensor) -> int:
    """Where the tensor's memory starts; 0 for one without memory of its own.

    Without: other tensor types (fake ones must not be asked), tensors wrapped by torch.func, meta
    tensors, and torch's zero tensors, which look contiguous.
    """
    if type(value) is not Tensor and type(value) is not Parameter:
        return 0
    try:
        return value.data_ptr()
    except RuntimeError:
        return 0


def plain(*values: object) -> bool:
    """Whether every tensor is a torch.Tensor proper whose memory holds its values."""
    return all(
        type(value) is Tensor and not value.is_neg() and address(value) != 0
        for value in values
        if isinstance(value, Tensor)
    )


def addresses_of(
    values: Iterable[Any],
    like: Tensor,
    dtype: torch.dtype | None = None,
    shape: torch.Size | None = None,
) -> list[int] | None:
    """Addresses of tensors that a kernel may take as they are, None if one of them is not such.

    Such: plain, dense, contiguous and not empty, with the device of `like`, and its dtype and shape
    if no others are given; autograd does not follow it, and all of its memory is there.
    """
    grad, on_cpu, addresses = torch.is_grad_enabled(), like.is_cpu, []
    try:
        dtype, shape = dtype or like.dtype, shape or like.shape
        size = shape.numel() * dtype.itemsize
        for value in values:
            if (
                type(value) is not Tensor
                or value.dtype is not dtype
                or value.shape != shape
                or value.is_cpu is not on_cpu
                or not (on_cpu or value.device == like.device)
                or not value.is_contiguous()
                or value.is_neg()
                or (grad and value.requires_grad)
            ):
                return None
            start, held = value.data_ptr(), value.untyped_storage().nbytes()
            if not (start and size) or held < value.storage_offset() * dtype.itemsize + size:
                return None
            addresses.append(start)
    except (RuntimeError, NotImplementedError):  # sparse or nested; wrapped by torch.func
        return None
    return addresses


def layout_of(value: Tensor) -> torch.memory_format:
    """The dense layout to work in: the tensor's own if it has one, else contiguous.

    Strides are not compared: those of (B, 1, 8, 8) may differ between equal layouts.
    """
    if value.dim() != 4 or value.is_contiguous():
        return torch.contiguous_format
    if value.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def fp32(value: Amount) -> Amount:
    """What a kernel reads: a number, or contiguous fp32. Keep the result until the launch."""
    return value.to(torch.float32).contiguous() if isinstance(value, Tensor) else value


def finish(written: Tensor, target: Tensor) -> None:
    """After a kernel wrote `target`: bring it to `written`, and tell autograd of the change."""
    if target is not written:
        written.copy_(target)
    elif not written.is_inference():
        increment_version(written)

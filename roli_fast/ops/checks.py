"""What every op asks of its arguments and of their memory; errors name the argument."""

import math
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version
from torch.nn import Parameter

from roli_fast.errors import ArgumentError, ArgumentTypeError, describe
from roli_fast.ops import native

Amount = float | Tensor
"""A number for the whole batch, or a tensor (B,)."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LARGEST = 2.0**100
"""Numbers beyond are refused: products and distances of pixels have to stay numbers of fp32."""


class Range(NamedTuple):
    """Which numbers an argument may be."""

    expected: str
    low: float
    high: float


SIZE = Range("a number >= 0", 0.0, LARGEST)
SHARE = Range("a number in [0, 1]", 0.0, 1.0)
FINITE = Range("a finite number", -LARGEST, LARGEST)

_USUAL = (Tensor, float, type(None))
_NO_RULES: object = Tensor.__torch_dispatch__  # pyright: ignore[reportAttributeAccessIssue]
_functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]


def tensor(
    name: str,
    value: object,
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
    _has_memory(name, value)


def _has_memory(name: str, value: Tensor) -> None:
    """The storage is as large as the shape says: it is not after `resize_` of a storage."""
    if _has_rules(value) or torch.compiler.is_compiling():
        return
    try:
        held = value.untyped_storage().nbytes()  # by its shape, where there is no memory at all
    except NotImplementedError:  # wrapped by torch.func
        return
    reach = _reach(value)
    if reach and held < value.storage_offset() * value.element_size() + reach:
        fix = "Its storage was resized; fill it before the call."
        got = f"{held} bytes for {value.nbytes}"
        raise ArgumentError(describe(name, "a tensor that has its memory", got, fix))


def _reach(value: Tensor) -> int:
    """Bytes from the first element to the end of the last."""
    if value.is_contiguous() or value.nbytes == 0:
        return value.nbytes
    reach = sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True))
    return (reach + 1) * value.element_size()


def batch(name: str, value: object) -> None:
    """`value` is a dense floating-point tensor of shape (B, ...)."""
    tensor(name, value)
    if value.ndim < 1:  # type: ignore[attr-defined]
        raise ArgumentError(describe(name, "a batch of shape (B, ...)", "a scalar"))


def same_kind(name: str, value: object, other: Tensor) -> None:
    """`value` is a dense tensor with the dtype, device and shape of `other`."""
    tensor(name, value, (other.dtype,), other.shape, other.device)


def sample_ids(value: object, x: Tensor) -> None:
    """`value` is None or an int64 tensor (B,) where `x` is."""
    if value is not None:
        tensor("sample_ids", value, (torch.int64,), x.shape[:1], x.device)


def amount(name: str, value: object, x: Tensor, among: Range = SIZE) -> Amount:
    """`value`: a number of `among` (returned as float), or a float tensor (B,) where `x` is.

    The numbers inside a tensor are not looked at: on a GPU that would wait for the device.
    """
    if type(value) is float and among.low <= value <= among.high:
        return value
    if isinstance(value, Tensor):
        tensor(name, value, shape=x.shape[:1], device=x.device)
        if torch.is_grad_enabled():
            no_autograd(**{name: value})
        return value
    return number(name, value, among, " or a tensor of shape (B,)")


def number(name: str, value: object, among: Range = FINITE, else_: str = "") -> float:
    """`value` is a number of `among`; returned as float."""
    fix = "Write 8/255 for pixel units." if among is SIZE else ""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        got = type(value).__name__
        raise ArgumentTypeError(describe(name, among.expected + else_, got, fix))
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not among.low <= found <= among.high:
        raise ArgumentError(describe(name, among.expected + else_, found, fix))
    return found


def pair(bounds: object) -> tuple[float, float]:
    """`bounds` as (low, high); the numbers are checked by `box`."""
    if type(bounds) is tuple and len(bounds) == 2:
        low, high = bounds
        if type(low) is float and type(high) is float:
            return bounds
    try:
        low, high = bounds  # type: ignore[misc]
        if any(isinstance(end, (bool, Tensor, str)) for end in (low, high)):
            raise TypeError
        return float(low), float(high)
    except (TypeError, ValueError, OverflowError):
        raise ArgumentTypeError(
            describe("bounds", "two numbers (low, high)", repr(bounds), "Images in [0, 1]: (0, 1).")
        ) from None


def box(low: float, high: float) -> None:
    """The box is neither empty nor larger than 2^100."""
    if not -LARGEST <= low < high <= LARGEST:
        expected = "numbers (low, high) with low < high, of at most 2**100"
        raise ArgumentError(describe("bounds", expected, (low, high)))


def generator(value: object, x: Tensor) -> None:
    """`value` is None or a torch.Generator on the device of `x`."""
    good = isinstance(value, torch.Generator) and value.device.type == x.device.type
    if value is not None and not good:
        expected = f"a torch.Generator on {x.device}, where `x` is, or None"
        raise ArgumentTypeError(describe("generator", expected, getattr(value, "device", value)))


def no_autograd(**values: Tensor) -> None:
    """Refuse a tensor that autograd would have to follow: the op has no derivative."""
    for name, value in values.items():
        if value.requires_grad:
            fix = "Call the op under torch.no_grad(), or pass tensor.detach()."
            raise ArgumentError(
                describe(name, "a tensor without requires_grad", "one that requires grad", fix)
            )


def writable(name: str, value: Tensor) -> None:
    """`value` may be written: each element has memory of its own, and inference mode agrees."""
    if value.is_inference() and not torch.is_inference_mode_enabled():
        _refuse_inference(name)
    reach = 0  # of the dimensions so far, in elements
    layout = [] if value.is_contiguous() else zip(value.stride(), value.shape, strict=True)
    for step, size in sorted(pair for pair in layout if pair[1] > 1):
        if step <= reach:
            got = "an expanded tensor" if step == 0 else "one that overlaps itself"
            fix = f"Pass {name}.clone()."
            raise ArgumentError(describe(name, "elements with memory of their own", got, fix))
        reach += (size - 1) * step


def no_inference(**values: Tensor) -> None:
    """Refuse tensors of inference mode that autograd would have to keep."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return
    if any(value.requires_grad for value in values.values()):
        for name, value in values.items():
            if value.is_inference():
                _refuse_inference(name)


def _refuse_inference(name: str) -> None:
    fix = "Clone it outside of torch.inference_mode()."
    raise ArgumentError(describe(name, "a normal tensor", "an inference tensor", fix))


def apart(written_name: str, written: Tensor, **others: object) -> None:
    """No tensor among `others` shares memory with `written`, which changes while they are read.

    Ranges from the first to the last byte are compared, so interleaved views count as shared.
    """
    written_start, written_end = _extent(written)
    for name, value in others.items():
        if not isinstance(value, Tensor):
            continue
        start, end = _extent(value)
        if value is written or (start < written_end and written_start < end):
            expected = f"memory apart from `{written_name}`, which is written"
            fix = f"Pass {written_name}.clone() as `{written_name}`, or another tensor here."
            raise ArgumentError(describe(name, expected, "shared memory", fix))


def _extent(value: Tensor) -> tuple[int, int]:
    """First and one-past-last byte of the elements; (0, 0) without memory."""
    start = address(value)
    return start, start + (_reach(value) if start else 0)


def _has_rules(value: Tensor) -> bool:
    """Whether its type has rules of its own for torch's operators, as fake tensors have."""
    return type(value).__torch_dispatch__ is not _NO_RULES  # type: ignore[attr-defined]


def seen(**values: object) -> bool:
    """Whether torch has to see the call as one of its operators.

    It has where it compiles, traces or runs a dispatch mode, and for tensor types with rules of
    their own. Refuses what no operator of ours can follow: vmap and forward-mode differentiation.
    """
    if torch.compiler.is_compiling():
        return True
    usual = all(type(value) in _USUAL for value in values.values())
    watched, followed = native.watched(), forward_ad._current_level >= 0
    if usual and not watched and not followed and _functorch.maybe_current_level() is None:
        return False
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    for name, value in tensors.items():
        if _functorch.is_batchedtensor(value):
            fix = "Call it without torch.vmap: it takes whole batches (B, ...)."
            raise ArgumentTypeError(describe(name, "a plain tensor", "one of torch.vmap", fix))
        if followed and forward_ad.unpack_dual(value).tangent is not None:
            fix = "The op has no derivative: pass the tensor without its tangent."
            raise ArgumentError(describe(name, "a tensor without a tangent", "a dual one", fix))
    fake_alike(**tensors)
    return watched or any(map(_has_rules, tensors.values()))


def fake_alike(**tensors: Tensor) -> None:
    """All are fake tensors, or none is and no mode makes them so: torch cannot mix them."""
    if torch.compiler.is_compiling():  # all of them are
        return
    fakes = [value for value in tensors.values() if isinstance(value, FakeTensor)]
    mode = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    mode = fakes[0].fake_mode if fakes and mode is None else mode
    if any(fake.fake_mode is not mode for fake in fakes):
        name = next(name for name, value in tensors.items() if isinstance(value, FakeTensor))
        raise ArgumentTypeError(
            describe(name, "fake tensors of one FakeTensorMode", "of several", "Make all in one.")
        )
    if mode is None or mode.allow_non_fake_inputs:
        return
    for name, value in tensors.items():
        if not _has_rules(value):
            expected = "a fake tensor, as FakeTensorMode and the other arguments ask for"
            raise ArgumentTypeError(describe(name, expected, type(value).__name__))


def can_be_written(*values: Tensor) -> bool:
    """Whether an operator can write these: torch's fallback for views that negate fails there."""
    return torch.compiler.is_compiling() or not any(value.is_neg() for value in values)


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


def addresses_of(written: Sequence[Tensor], others: Sequence[Tensor]) -> list[int] | None:
    """The memory addresses in the usual case: nothing to copy, convert or complain about.

    The usual case: plain, contiguous, not empty, none of inference mode written, and what is
    written shares no memory with anything.
    """
    values = (*written, *others)
    for value in values:
        if type(value) is not Tensor or not value.is_contiguous() or value.is_neg():
            return None
    try:
        addresses = [value.data_ptr() for value in values]
    except RuntimeError:  # wrapped by torch.func
        return None
    sizes = [value.nbytes for value in values]
    if 0 in addresses or 0 in sizes:
        return None
    for place, value in enumerate(written):
        start, end = addresses[place], addresses[place] + sizes[place]
        if value.is_inference():
            return None
        for other in range(place + 1, len(values)):
            if addresses[other] < end and start < addresses[other] + sizes[other]:
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

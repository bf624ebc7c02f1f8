"""What every op asks of its arguments. Each check raises with the argument's name."""

import math
import numbers
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from roli_fast.errors import ArgumentError, ArgumentTypeError, describe
from roli_fast.ops import native

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LARGEST = 2.0**100
"""Numbers beyond are refused: products and distances of pixels have to stay numbers of fp32."""

_USUAL = (Tensor, float, type(None))
_NO_RULES: object = Tensor.__torch_dispatch__  # pyright: ignore[reportAttributeAccessIssue]
_functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]


def batch(name: str, value: object) -> None:
    """`value` is a dense floating-point tensor of shape (B, ...)."""
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(
            describe(name, "a floating-point tensor (B, ...)", type(value).__name__)
        )
    if value.dtype not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise ArgumentTypeError(describe(name, f"one of the dtypes {names}", value.dtype))
    dense(name, value)
    if value.dim() < 1:
        raise ArgumentError(describe(name, "a batch of shape (B, ...)", "a scalar"))


def same_kind(name: str, value: object, other: Tensor, other_name: str = "x_adv") -> None:
    """`value` is a tensor with the dtype, device and shape of `other`."""
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(
            describe(name, f"a tensor shaped as `{other_name}`", type(value).__name__)
        )
    if value.dtype != other.dtype:
        fix = f"Convert it: {name}.to({other_name}.dtype)."
        raise ArgumentTypeError(
            describe(name, f"{other.dtype}, the dtype of `{other_name}`", value.dtype, fix)
        )
    if value.device != other.device:
        raise ArgumentTypeError(
            describe(name, f"device {other.device}, that of `{other_name}`", value.device)
        )
    dense(name, value)
    if value.shape != other.shape:
        raise ArgumentError(
            describe(
                name, f"shape {tuple(other.shape)}, that of `{other_name}`", tuple(value.shape)
            )
        )


def dense(name: str, value: Tensor) -> None:
    """`value` is strided, and its storage is as large as its shape says."""
    if value.layout is not torch.strided or value.is_nested:
        got = "a nested tensor" if value.is_nested else value.layout
        raise ArgumentTypeError(describe(name, "a dense tensor", got))
    if torch.compiler.is_compiling() or _has_rules(value):
        return
    try:
        held = value.untyped_storage().nbytes()  # by its shape, where there is no memory at all
    except NotImplementedError:  # wrapped by torch.func
        return
    reach = _reach(value)
    if reach and held < value.storage_offset() * value.element_size() + reach:
        fix = "Its storage was resized; fill it before the call."
        raise ArgumentError(
            describe(name, "a tensor that has its memory", f"{held} bytes for {value.nbytes}", fix)
        )


def _reach(value: Tensor) -> int:
    """Bytes from the first element to the end of the last."""
    if value.is_contiguous() or value.nbytes == 0:
        return value.nbytes
    reach = sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True))
    return (reach + 1) * value.element_size()


def no_autograd(**values: Tensor) -> None:
    """Refuse a tensor that autograd would have to follow: the op has no derivative."""
    for name, value in values.items():
        if value.requires_grad:
            fix = "Call the op under torch.no_grad(), or pass tensor.detach()."
            raise ArgumentError(
                describe(name, "a tensor without requires_grad", "one that requires grad", fix)
            )


def amount(name: str, value: object, x: Tensor) -> float | Tensor:
    """`value`: a finite number >= 0 (returned as float), or a float tensor (B,) where `x` is.

    The numbers inside a tensor are not looked at: on a GPU that would wait for the device.
    """
    if type(value) is float and 0.0 <= value <= LARGEST:
        return value
    expected, fix = "a number >= 0 or a tensor of shape (B,)", "Write 8/255 for pixel units."
    result = _scalar(name, value, x, expected, fix)
    if isinstance(result, float) and not 0.0 <= result <= LARGEST:
        raise ArgumentError(describe(name, expected, result, fix))
    return result


def number(name: str, value: object, x: Tensor) -> float | Tensor:
    """The same for a finite number of either sign."""
    expected = "a finite number or a tensor of shape (B,)"
    result = _scalar(name, value, x, expected)
    if isinstance(result, float) and not -LARGEST <= result <= LARGEST:
        raise ArgumentError(describe(name, expected, result))
    return result


def _scalar(name: str, value: object, x: Tensor, expected: str, fix: str = "") -> float | Tensor:
    """A number as float, of any size, or a float tensor (B,) where `x` is."""
    if isinstance(value, Tensor):
        if value.dtype not in DTYPES:
            raise ArgumentTypeError(describe(name, "a floating-point tensor (B,)", value.dtype))
        dense(name, value)
        if value.shape != x.shape[:1]:
            got = f"shape {tuple(value.shape)}"
            fix = f"B is {x.shape[0]} here; for one value write a plain number."
            raise ArgumentError(describe(name, expected, got, fix))
        if value.device != x.device:
            raise ArgumentTypeError(describe(name, f"a tensor on {x.device}", value.device))
        if torch.is_grad_enabled():
            no_autograd(**{name: value})
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ArgumentTypeError(describe(name, expected, type(value).__name__, fix))
    return as_float(value)


def as_float(value: numbers.Real) -> float:
    """The number; infinity for an integer that no float holds."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def fraction(name: str, value: object, x: Tensor) -> float | Tensor:
    """`value`: a number in [0, 1] (returned as float), or a float tensor (B,) where `x` is."""
    number = amount(name, value, x)
    if isinstance(number, float) and number > 1.0:
        raise ArgumentError(describe(name, "a number in [0, 1] or a tensor (B,)", value))
    return number


def sample_ids(value: object, x: Tensor) -> None:
    """`value` is None or an int64 tensor (B,) where `x` is."""
    if value is None:
        return
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(
            describe("sample_ids", "an int64 tensor (B,) or None", type(value).__name__)
        )
    if value.dtype != torch.int64:
        raise ArgumentTypeError(describe("sample_ids", "an int64 tensor (B,)", value.dtype))
    dense("sample_ids", value)
    if value.device != x.device:
        raise ArgumentTypeError(
            describe("sample_ids", f"one on {x.device}, where `x` is", value.device)
        )
    if value.shape != x.shape[:1]:
        expected, got = f"shape ({x.shape[0]},), one id a sample", tuple(value.shape)
        raise ArgumentError(describe("sample_ids", expected, got))


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
    if value is None:
        return
    if not isinstance(value, torch.Generator):
        raise ArgumentTypeError(
            describe("generator", "a torch.Generator or None", type(value).__name__)
        )
    if value.device.type != x.device.type:
        fix = f"Make one with torch.Generator({str(x.device)!r})."
        raise ArgumentTypeError(
            describe("generator", f"one on {x.device}, where `x` is", value.device, fix)
        )


def writable(name: str, value: Tensor) -> None:
    """`value` may be written: each element has memory of its own, and inference mode agrees."""
    if value.is_inference() and not torch.is_inference_mode_enabled():
        fix = "Clone it, or stay inside torch.inference_mode()."
        raise ArgumentError(describe(name, "a normal tensor", "an inference tensor", fix))
    reach = 0  # of the dimensions so far, in elements
    layout = [] if value.is_contiguous() else zip(value.stride(), value.shape, strict=True)
    for step, size in sorted(pair for pair in layout if pair[1] > 1):
        if step <= reach:
            got = "an expanded tensor" if step == 0 else "one that overlaps itself"
            fix = f"Pass {name}.clone()."
            raise ArgumentError(describe(name, "elements with memory of their own", got, fix))
        reach += (size - 1) * step


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


def can_be_written(*values: Tensor) -> bool:
    """Whether an operator can write these: torch's fallback for views that negate fails there."""
    return torch.compiler.is_compiling() or not any(value.is_neg() for value in values)


def no_inference(**values: Tensor) -> None:
    """Refuse tensors of inference mode that autograd would have to keep."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return
    if any(value.requires_grad for value in values.values()):
        for name, value in values.items():
            if value.is_inference():
                fix = "Clone it outside of torch.inference_mode()."
                raise ArgumentError(describe(name, "a normal tensor", "an inference tensor", fix))


def fake_alike(**tensors: Tensor | None) -> None:
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
        if value is not None and not _has_rules(value):
            expected = "a fake tensor, as FakeTensorMode and the other arguments ask for"
            raise ArgumentTypeError(describe(name, expected, type(value).__name__))


def address(tensor: Tensor) -> int:
    """Where the tensor's memory starts; 0 for one without memory of its own.

    Without: other tensor types (fake ones must not be asked), tensors wrapped by torch.func, meta
    tensors, and torch's zero tensors, which look contiguous.
    """
    if type(tensor) is not Tensor and type(tensor) is not Parameter:
        return 0
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return 0


def _extent(tensor: Tensor) -> tuple[int, int]:
    """First and one-past-last byte of the elements; (0, 0) without memory."""
    start = address(tensor)
    return start, start + (_reach(tensor) if start else 0)

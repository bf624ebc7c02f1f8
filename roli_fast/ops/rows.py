"""Steps of a transformer's passes over rows of bf16 numbers, for the engine alone.

The caller sees to it that tensors are contiguous, on one device, of the dtypes named here and not
shared; rows have at most `MOST_COLUMNS` numbers. None is differentiable. The kernels are the CPU's.
"""

import torch
from torch import Tensor

from roli_fast.ops import native, reference

MOST_COLUMNS = 4096
_EXAMPLE = torch.empty(0, dtype=torch.bfloat16, device="cpu")


def usable(columns: int = 1) -> bool:
    """Whether there are kernels here for rows of so many numbers."""
    return 0 < columns <= MOST_COLUMNS and native.usable("rows", _EXAMPLE)


def softmax_(scores: Tensor, scale: float) -> Tensor:
    """softmax(scale * scores) over the last axis, written into the scores, bf16."""
    if not native.usable("rows", scores):
        return scores.copy_(reference.softmax_rows(scores, scale))
    native.run("softmax_rows", scores, scores.data_ptr(), *_rows(scores), scale)
    return scores


def softmax_backward_(grad: Tensor, chance: Tensor, scale: float) -> Tensor:
    """From the gradient of the probabilities `chance` that of the scores; written into `grad`."""
    if not native.usable("rows", grad):
        return grad.copy_(reference.softmax_rows_backward(grad, chance, scale))
    pointers = (grad.data_ptr(), chance.data_ptr())
    native.run("softmax_rows_backward", grad, *pointers, *_rows(grad), scale)
    return grad


def norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm of the last axis of x (..., n), fp32: in bf16, with each row's mean (...) and
    1 / sqrt(variance + eps) (...), fp32."""
    out = torch.empty_like(x, dtype=torch.bfloat16)
    if not native.usable("rows", out):
        return reference.norm_rows(x, weight, bias, eps)
    mean, factor = x.new_empty(x.shape[:-1]), x.new_empty(x.shape[:-1])
    pointers = [0 if t is None else t.data_ptr() for t in (out, mean, factor, x, weight, bias)]
    native.run("norm_rows", out, *pointers, *_rows(x), eps)
    return out, mean, factor


def norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, factor: Tensor, weight: Tensor | None
) -> Tensor:
    """The gradient of x, fp32, from that of the normalised rows, bf16."""
    if not native.usable("rows", grad):
        return reference.norm_rows_backward(grad, x, mean, factor, weight)
    out = torch.empty_like(x)
    tensors = (out, grad, x, mean, factor, weight)
    pointers = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    native.run("norm_rows_backward", grad, *pointers, *_rows(x))
    return out


def widen_add(x: Tensor, y: Tensor) -> Tensor:
    """x + y, fp32, for x in fp32 and y in bf16, of one shape."""
    if not native.usable("rows", y):
        return reference.widen_add(x, y)
    out = torch.empty_like(x)
    native.run("widen_add", y, out.data_ptr(), x.data_ptr(), y.data_ptr(), x.numel())
    return out


def _rows(tensor: Tensor) -> tuple[int, int]:
    columns = tensor.shape[-1]
    return tensor.numel() // columns, columns

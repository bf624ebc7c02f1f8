"""Layer norm and the residual sum beside products in bf16, without a pass for each conversion."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from roli_fast.ops import rows

_LOOKS = ("__get__", "dim", "size", "numel", "is_floating_point", "stride", "is_contiguous")
"""What reads of a tensor no more than how it lies."""


class Norms:
    """Layer norms whose results only linear layers read give them in bf16, rounded once.

    Autocast gives them in fp32 and rounds them before the product: the same numbers with a pass
    more, and two in the backward pass. Which norms these are is seen in a first pass; all others
    stay torch's, such as one that the residual sum reads.
    """

    def __init__(self) -> None:
        self.learning = True
        self._read: dict[int, bool] = {}  # by the weight's id: whether linear layers alone read it
        self._results: dict[int, tuple[Tensor, int]] = {}
        self._weights: list[Tensor] = []

    def watch(self, func: Any, args: Any, kwargs: Any, found: Any) -> None:
        """See one call of the first pass, and its result."""
        for place, value in enumerate((*args, *kwargs.values())):
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                if id(tensor) in self._results and getattr(func, "__name__", "") not in _LOOKS:
                    weight = self._results[id(tensor)][1]
                    linear = func is functional.linear and place == 0
                    self._read[weight] = linear and self._read.get(weight, True)
        weight = kwargs.get("weight")
        if func is functional.layer_norm and weight is not None and isinstance(found, Tensor):
            self._results[id(found)] = found, id(weight)
            self._weights.append(weight)  # so that no other tensor gets its id

    def finish(self) -> None:
        """After the first pass."""
        self.learning, self._results = False, {}

    def forget(self) -> None:
        """After a first pass that broke off: it may have missed who else reads a result."""
        if self.learning:
            self._read, self._results, self._weights = {}, {}, []

    def norm(  # noqa: PLR0913 - the signature of torch's
        self,
        input: Tensor,
        normalized_shape: Any,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor | None:
        """What `functional.layer_norm` gives, in bf16; None where it is torch's to do."""
        own = [tensor for tensor in (weight, bias) if tensor is not None]
        if not self._read.get(id(weight)) or not _plain(input, torch.float32):
            return None
        if len(normalized_shape) != 1 or input.shape[-1] > rows.MOST_COLUMNS:
            return None
        if any(t.dtype != torch.float32 or t.requires_grad or not t.is_contiguous() for t in own):
            return None
        return _Norm.apply(input, weight, bias, eps)  # pyright: ignore[reportReturnType]


def residual_sum(x: Any, y: Any, **others: Any) -> Tensor | None:
    """x + y for one in fp32 and one in bf16, in fp32; None where it is torch's to do."""
    if isinstance(x, Tensor) and isinstance(y, Tensor) and x.dtype == torch.bfloat16:
        x, y = y, x
    if others or not _plain(x, torch.float32) or not _plain(y, torch.bfloat16):
        return None
    return _Sum.apply(x, y) if x.shape == y.shape else None  # pyright: ignore[reportReturnType]


def unbind(x: Tensor, dim: int = 0) -> tuple[Tensor, ...] | None:
    """`x.unbind(dim)`, whose gradient lies as x does; None where x is contiguous."""
    if type(x) is not Tensor or not x.is_cpu or not x.requires_grad or x.is_contiguous():
        return None
    return _Unbind.apply(x, dim)  # pyright: ignore[reportReturnType]


def _plain(value: object, dtype: torch.dtype) -> bool:
    """Whether a kernel can take this as it lies."""
    return (
        type(value) is Tensor
        and value.dtype == dtype
        and value.is_cpu
        and value.is_contiguous()
        and value.numel() > 0
    )


class _Norm(torch.autograd.Function):
    """Layer norm, with the gradient of its input alone."""

    @staticmethod
    def forward(
        context: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        out, mean, factor = rows.norm(x, weight, bias, eps)
        context.save_for_backward(x, mean, factor, weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad: Tensor) -> Any:  # pyright: ignore
        x, mean, factor, weight = context.saved_tensors
        return rows.norm_backward(grad.contiguous(), x, mean, factor, weight), None, None, None


class _Sum(torch.autograd.Function):
    """fp32 + bf16."""

    @staticmethod
    def forward(context: Any, x: Tensor, y: Tensor) -> Tensor:
        return rows.widen_add(x, y)

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad: Tensor) -> Any:  # pyright: ignore
        return grad, grad.to(torch.bfloat16)


class _Unbind(torch.autograd.Function):
    """Parts of a tensor; torch's would stack their gradients, and copy the stack again."""

    @staticmethod
    def forward(context: Any, x: Tensor, dim: int) -> tuple[Tensor, ...]:
        context.dim, context.like = (
            dim,
            torch.empty_like(x, device="meta"),
        )  # strides without memory
        return x.unbind(dim)

    @staticmethod
    @once_differentiable
    def backward(context: Any, *grads: Tensor) -> Any:  # pyright: ignore
        like = context.like
        found = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype)
        for part, grad in zip(found.unbind(context.dim), grads, strict=True):
            part.copy_(grad)
        return found, None

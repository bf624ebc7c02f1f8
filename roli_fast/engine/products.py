"""Attention by matrix products in bf16 on the CPU, with nothing between them but one step a row."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from roli_fast.ops import rows


def can_multiply(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether `attention_products` takes these: bf16, or under autocast to it, without broadcasts,
    and with kernels for rows of this length."""
    given = (query, key, value)
    if torch.compiler.is_compiling():
        return False
    if any(type(t) is not Tensor or not t.is_cpu or t.numel() == 0 for t in given):
        return False
    if any(_dtype(t) != torch.bfloat16 for t in given):
        return False
    if query.ndim < 3 or not (query.shape[:-2] == key.shape[:-2] == value.shape[:-2]):
        return False
    if mask is not None and (mask.requires_grad or not mask.is_floating_point()):
        return False
    return rows.usable(key.shape[-2])


def attention_products(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """softmax(scale q k^T + mask) v, with gradients of q, k and v; see `can_multiply`.

    Scores and probabilities share one buffer, as their gradients do, and the scale costs no pass.
    Each of them is rounded to bf16 once, as in torch's own operations.
    """
    query, key, value = (tensor.to(torch.bfloat16) for tensor in (query, key, value))
    return _Products.apply(query, key, value, mask, scale)  # pyright: ignore[reportReturnType]


def _dtype(tensor: Tensor) -> torch.dtype:
    """What autocast makes of it."""
    if tensor.dtype == torch.float32 and torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    return tensor.dtype


class _Products(torch.autograd.Function):
    """Attention, and its gradients, with what both need in contiguous matrices."""

    @staticmethod
    def forward(  # noqa: PLR0913 - torch's first, then attention's own
        context: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
    ) -> Tensor:
        heads = query.shape[:-2]
        if mask is not None:
            query = query * scale
        q, k, v = (t.contiguous().view(-1, *t.shape[-2:]) for t in (query, key, value))
        chance = torch.bmm(q, k.transpose(1, 2))
        if mask is not None:
            chance.view(*heads, *chance.shape[1:]).add_(mask.to(chance.dtype))
        rows.softmax_(chance, scale if mask is None else 1.0)
        context.save_for_backward(q, k, v, chance)
        context.heads, context.scale, context.masked = heads, scale, mask is not None
        return torch.bmm(chance, v).view(*heads, q.shape[1], v.shape[2])

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad: Tensor) -> Any:  # pyright: ignore
        q, k, v, chance = context.saved_tensors
        out = grad.contiguous().view(-1, *grad.shape[-2:])
        of_v = torch.bmm(chance.transpose(1, 2), out)
        scores = torch.bmm(out, v.transpose(1, 2))
        rows.softmax_backward_(scores, chance, 1.0 if context.masked else context.scale)
        of_q, of_k = torch.bmm(scores, k), torch.bmm(scores.transpose(1, 2), q)
        if context.masked:
            of_q.mul_(context.scale)
        found = (t.view(*context.heads, *t.shape[1:]) for t in (of_q, of_k, of_v))
        return (*found, None, None)

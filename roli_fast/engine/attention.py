"""Attention by matrix products, for gradients in bf16 on the CPU."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

MOST_TOKENS = 1024
"""Beyond it a matrix of all pairs of tokens takes too much memory."""


class MatrixAttention(TorchFunctionMode):
    """Inside `with`, `scaled_dot_product_attention` is softmax(q k^T) v in three operations.

    The backward of torch 2.11's fused kernel takes three times its fp32 time in bf16 there: with 65
    tokens six times as long as the products. What they cannot do, boolean masks, dropout, causal or
    grouped attention, goes to the fused kernel.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Every torch function inside `with`."""
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            found = _attention(*args, **kwargs)
            if found is not None:
                return found
        return func(*args, **kwargs)


def _attention(  # noqa: PLR0913 - the signature of torch's
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """None where this is not for matrix products."""
    masked = attn_mask is not None and not attn_mask.is_floating_point()
    if masked or dropout_p or is_causal or enable_gqa or key.shape[-2] > MOST_TOKENS:
        return None
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)
    if attn_mask is not None:
        scores = scores + attn_mask.to(scores.dtype)
    return torch.softmax(scores, dim=-1) @ value

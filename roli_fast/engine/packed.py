"""Linear layers in bf16 on the CPU, with weights laid out once as the matrix unit reads them."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def can_pack() -> bool:
    """Whether this torch and this CPU have products with such weights."""
    ops = torch.ops.mkldnn
    if not hasattr(ops, "_linear_pointwise") or not hasattr(ops, "_reorder_linear_weight"):
        return False
    return torch.backends.mkldnn.is_available() and ops._is_mkldnn_bf16_supported()


class PackedWeights:
    """Linear layers by oneDNN with weights that it laid out beforehand.

    `functional.linear` and its backward pass lay the weight out anew at every call, which takes a
    third to a half of a product's time (1576 rows by 384 to 1536 columns). Weights that do not
    change are laid out at their first use, for either direction; both copies are freed with this.

    Args:
        weights: bf16 matrices (out, in) on the CPU that do not change and outlive this.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self._packed = {id(weight): _Packed(weight) for weight in weights}

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
        """What `functional.linear` gives under autocast; None where that has to do it."""
        packed = self._packed.get(id(weight))
        if packed is None or x.ndim < 2 or x.numel() == 0 or not x.is_cpu:
            return None
        if not x.is_floating_point() or (bias is not None and bias.requires_grad):
            return None
        short = None if bias is None else bias.to(torch.bfloat16)
        found = _Product.apply(x.to(torch.bfloat16), packed, short)
        assert isinstance(found, Tensor)
        return found


class _Packed:
    """One weight, and its two layouts once they are wanted."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight  # its id stays its own
        self._ways: dict[bool, Tensor] = {}

    def way(self, back: bool) -> Tensor:
        """The weight as x W^T takes it; `back`: as dy W does."""
        found = self._ways.get(back)
        if found is None:
            with torch.inference_mode(False), torch.no_grad():
                matrix = self.weight.detach()
                matrix = matrix.t().contiguous() if back else matrix.contiguous()
                found = torch.ops.mkldnn._reorder_linear_weight(matrix)
            self._ways[back] = found
        return found


class _Product(torch.autograd.Function):
    """x W^T + b, with the gradient of x alone."""

    @staticmethod
    def forward(context: Any, x: Tensor, packed: _Packed, bias: Tensor | None) -> Tensor:
        context.packed = packed
        return _times(x, packed.way(False), bias)

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad: Tensor) -> Any:  # pyright: ignore
        return _times(grad, context.packed.way(True), None), None, None


def _times(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), matrix, bias, "none", [], "")

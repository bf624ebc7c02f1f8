"""Steps of a transformer's passes over rows of bf16 numbers: computed in fp32, rounded once."""

import torch
from torch import Tensor


def softmax_rows(scores: Tensor, scale: float) -> Tensor:
    """softmax(scale * scores) over the last axis."""
    return torch.softmax(scores.float() * scale, dim=-1).to(scores.dtype)


def softmax_rows_backward(grad: Tensor, chance: Tensor, scale: float) -> Tensor:
    """The gradient of the scores from that of the probabilities `chance`."""
    p, g = chance.float(), grad.float()
    return (scale * (p * (g - (g * p).sum(-1, keepdim=True)))).to(grad.dtype)


def norm_rows(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm of fp32 rows in bf16, each row's mean, and 1 / sqrt(variance + eps)."""
    variance, mean = torch.var_mean(x, -1, correction=0)
    factor = 1 / torch.sqrt(variance + eps)
    out = (x - mean[..., None]) * factor[..., None]
    out = out if weight is None else out * weight
    return (out if bias is None else out + bias).to(torch.bfloat16), mean, factor


def norm_rows_backward(
    grad: Tensor, x: Tensor, mean: Tensor, factor: Tensor, weight: Tensor | None
) -> Tensor:
    """The gradient of x, fp32, from that of the normalised rows."""
    inner = grad.float() if weight is None else grad.float() * weight
    shifted, factor = x - mean[..., None], factor[..., None]
    level = inner.mean(-1, keepdim=True)
    slope = (inner * shifted).mean(-1, keepdim=True) * factor**2
    return factor * (inner - level - shifted * slope)


def widen_add(x: Tensor, y: Tensor) -> Tensor:
    """x + y in fp32 for x in fp32 and y in bf16."""
    return x + y.float()

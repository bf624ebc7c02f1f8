"""The specification of the LoRA ops: dropout by Philox, the linear layer, and the merge."""

import torch
from torch import Tensor
from torch.nn import functional

from roli_fast.ops.reference.random import philox
from roli_fast.ops.reference.rounding import compute_dtype

Rows = tuple[tuple[int, int], ...]


def lora_linear(  # noqa: PLR0913 - the layer's own quantities
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    seed: Tensor | None,
    *,
    scale: float,
    dropout: float,
    rows: Rows,
) -> Tensor:
    """What `ops.lora_linear` returns: plain torch, followed by autograd. See there.

    All tensors have one dtype. `seed` may be None without dropout.
    """
    branch = x if seed is None or dropout == 0.0 else lora_dropout(x, seed, dropout)
    return lora_apply(branch, x, weight, bias, a, b, gain=scale / (1.0 - dropout), rows=rows)


def lora_apply(  # noqa: PLR0913 - the layer's own quantities
    branch: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    *,
    gain: float,
    rows: Rows,
) -> Tensor:
    """x W^T + bias, and gain * (branch A_i^T) B_i^T added to the columns rows[i]."""
    y = functional.linear(x, weight, bias)
    inner = functional.linear(branch, a).split(b.shape[1], dim=-1)
    parts, done = {}, 0
    for place, (start, stop) in enumerate(rows):
        factor = b[done : done + stop - start]
        parts[start] = y[..., start:stop] + gain * functional.linear(inner[place], factor)
        done += stop - start
    pieces, at = [], 0
    for start in sorted(parts):  # plain ints: torch.compile sorts nothing else
        pieces += [y[..., at:start], parts[start]]
        at = start + parts[start].shape[-1]
    return torch.cat([*pieces, y[..., at:]], dim=-1)


def lora_dropout(x: Tensor, seed: Tensor, dropout: float) -> Tensor:
    """`x` with about a share `dropout` of its elements set to zero, the others as they are.

    Element i in row-major order stays if word i mod 4 of Philox's counter i div 4, keyed by `seed`,
    is at least `dropout_threshold(dropout)`.
    """
    counters = torch.arange((x.numel() + 3) // 4, device=x.device)
    words = torch.stack(philox(seed.reshape(1), counters, torch.zeros_like(counters)), dim=1)
    keep = words.flatten()[: x.numel()].reshape(x.shape) >= dropout_threshold(dropout)
    return torch.where(keep, x, torch.zeros((), dtype=x.dtype, device=x.device))


def dropout_threshold(dropout: float) -> int:
    """How many of the 2^32 random words drop an element."""
    return min(round(dropout * 2**32), 2**32 - 1)


def lora_merge(
    weight: Tensor, a: Tensor, b: Tensor, *, scale: float, rows: Rows, dtype: torch.dtype
) -> Tensor:
    """`weight` + scale * B_i A_i on the rows rows[i], computed in fp32 (or fp64), rounded once."""
    wide = compute_dtype(weight.dtype)
    merged, factor = weight.to(wide, copy=True), a.to(wide)
    rank, done = b.shape[1], 0
    for place, (start, stop) in enumerate(rows):
        part = b[done : done + stop - start].to(wide) @ factor[place * rank : (place + 1) * rank]
        merged[start:stop] += scale * part
        done += stop - start
    return merged.to(dtype)

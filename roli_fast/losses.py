"""Per-sample losses, pure: (logits (B, C), labels (B,)) -> (B,) float.

Half-precision logits are raised to fp32 first, so that a loss neither overflows nor rounds.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]


def at_least_float32(logits: Tensor) -> Tensor:
    """`logits` in fp32, or untouched where it is fp32 or fp64 already."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def cross_entropy(logits: Tensor, y: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy in nats of each sample, (B, C) and (B,) -> (B,)."""
    return functional.cross_entropy(
        at_least_float32(logits), y, reduction="none", label_smoothing=label_smoothing
    )

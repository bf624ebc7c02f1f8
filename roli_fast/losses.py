"""Per-sample losses, pure: (logits (B, C), labels (B,)) -> (B,) float.

Half-precision logits are raised to fp32 first, so that a loss neither overflows nor rounds.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class SampleLoss(Protocol):
    """A loss that holds something of every sample in the batch, its target say."""

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """As any loss: (B, C) and (B,) -> (B,)."""
        ...

    def rows(self, part: slice) -> Loss:
        """The loss for these samples alone, where a batch is split."""
        ...


TINY = 1e-12
"""Added to the DLR's denominators, as its authors' code does: equal logits divide by no zero."""


def at_least_float32(logits: Tensor) -> Tensor:
    """`logits` in fp32, or untouched where it is fp32 or fp64 already."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def cross_entropy(logits: Tensor, y: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy in nats of each sample, (B, C) and (B,) -> (B,)."""
    return functional.cross_entropy(
        at_least_float32(logits), y, reduction="none", label_smoothing=label_smoothing
    )


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{i != y} z_i - z_y: above 0 where a sample is misclassified, (B, C) and (B,) -> (B,).

    Carlini & Wagner 2017 (arXiv:1608.04644), section V.A, f_6 without its threshold.
    """
    logits = at_least_float32(logits)
    labels = y[:, None]
    others = logits.scatter(1, labels, -torch.inf)
    return others.amax(1) - logits.gather(1, labels)[:, 0]


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio: (max_{i != y} z_i - z_y) / (z_1 - z_3), z_1 >= z_2 >= z_3 ...

    Croce & Hein 2020 (arXiv:2003.01690), equation 6: unlike the cross-entropy it does not change
    with the scale of the logits. (B, C) and (B,) -> (B,); C at least 3.
    """
    logits = at_least_float32(logits)
    highest, classes = logits.topk(3, dim=1)
    other = torch.where(classes[:, 0] == y, highest[:, 1], highest[:, 0])
    true = logits.gather(1, y[:, None])[:, 0]
    return (other - true) / (highest[:, 0] - highest[:, 2] + TINY)


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """(z_target - z_y) / (z_1 - (z_3 + z_4) / 2), equation 7 of the same paper; C at least 4."""
    logits = at_least_float32(logits)
    highest = logits.topk(4, dim=1).values
    pair = logits.gather(1, torch.stack([target, y], dim=1))
    spread = highest[:, 0] - 0.5 * (highest[:, 2] + highest[:, 3])
    return (pair[:, 0] - pair[:, 1]) / (spread + TINY)


def kl(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(softmax(reference) || softmax(logits)) in nats, (B, C) and (B, C) -> (B,).

    TRADES (Zhang et al. 2019, arXiv:1901.08573) maximises it from the clean logits `reference`.
    """
    ours = at_least_float32(logits).log_softmax(1)
    theirs = at_least_float32(reference).log_softmax(1)
    return functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)

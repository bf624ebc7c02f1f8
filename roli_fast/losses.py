"""Per-sample losses, pure: (logits (B, C), labels (B,)) -> (B,) float; and RAMP's, of a batch.

Half-precision logits are raised to fp32 first, so that a loss neither overflows nor rounds.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from roli_fast.errors import check_choice

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


def trades(clean: Tensor, attacked: Tensor, y: Tensor, *, beta: float) -> Tensor:
    """Cross-entropy on the clean images plus beta times KL(clean || attacked), a scalar.

    Zhang et al. 2019 (arXiv:1901.08573) as in their code: both are means over the batch, and the
    gradient goes through both predictions.

    Args:
        clean: logits (B, C) on the images themselves.
        attacked: logits (B, C) on the attacked ones.
        y: labels (B,).
        beta: 1 / lambda in the paper.
    """
    return cross_entropy(clean, y).mean() + beta * kl(attacked, clean).mean()


PairDistance = Callable[[Tensor, Tensor], Tensor]


def _half_squared_difference(source: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (source.softmax(1) - target.softmax(1)).square().sum(1)


def _one_minus_cosine(source: Tensor, target: Tensor) -> Tensor:
    return 1 - functional.cosine_similarity(source.softmax(1), target.softmax(1), dim=1)


def _kl_from_source(source: Tensor, target: Tensor) -> Tensor:
    return kl(target, source)


PAIR_DISTANCES: dict[str, PairDistance] = {
    "kl": _kl_from_source,
    "mse": _half_squared_difference,
    "cosine": _one_minus_cosine,
}
"""Name -> (source logits (B, C), target logits (B, C)) -> (B,), of p = softmax of either:
KL(p_source || p_target), |p_source - p_target|^2 / 2, 1 - cos(p_source, p_target)."""


def logit_pairing(
    logits_source: Tensor,
    logits_target: Tensor,
    y: Tensor,
    *,
    kind: str = "kl",
    detach_source: bool = False,
) -> Tensor:
    """How far the target's predictions are from the source's, where the source is right: a scalar.

    RAMP (Jiang & Singh 2024, arXiv:2402.06827), equation 1: the mean over the samples whose highest
    source logit is the label's. It is divided by their number and not by B, so a few of them weigh
    as much as all would; without any it is 0, with a gradient of 0. The choice itself is made on
    the device, without a wait, and what the other samples hold, infinities too, changes nothing.

    Args:
        logits_source: (B, C), on images attacked in the norm in which the model is robust.
        logits_target: (B, C), on those attacked in the norm in which it is to become so.
        y: labels (B,), int64.
        kind: a name in `PAIR_DISTANCES`: "kl", the paper's, "mse" or "cosine", its alternatives.
        detach_source: the source is what the target is pulled to, and is not pulled itself. The
            authors' code leaves the gradient in both.

    Raises:
        ArgumentError: another `kind`.
    """
    check_choice("kind", kind, tuple(PAIR_DISTANCES))
    right = logits_source.detach().argmax(1) == y
    if detach_source:
        logits_source = logits_source.detach()
    # zeros take the others' place before the distance: 0 times the gradient of inf would be NaN
    source, target = (
        torch.where(right[:, None], at_least_float32(logits), 0.0)
        for logits in (logits_source, logits_target)
    )
    distance = torch.where(right, PAIR_DISTANCES[kind](source, target), 0.0)
    return distance.sum() / right.sum().clamp(min=1)

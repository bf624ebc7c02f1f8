"""What is left to learn of each sample."""

from torch import Tensor
from torch.nn.functional import one_hot

from roli_fast.analysis.costs import Cost, say
from roli_fast.engine.input_gradient import check_labels
from roli_fast.errors import ArgumentError, describe
from roli_fast.losses import at_least_float32


def residual_size_cost(images: int, classes: int) -> Cost:
    """No pass: a softmax of cached logits."""
    return Cost("residual size", flops=5.0 * images * classes, bytes=4 * images * classes)


def residual(logits: Tensor, y: Tensor) -> Tensor:
    """delta_i = e_y - softmax(z), minus the cross-entropy's gradient in the logits, (N, C).

    Tomihari & Sato 2024 (arXiv:2405.16747), proposition 4.1: a step of gradient descent changes the
    model by sums over these.

    Args:
        logits: z, (N, C).
        y: labels (N,), int64.
    """
    if logits.ndim != 2:
        raise ArgumentError(describe("logits", "shape (N, C)", tuple(logits.shape)))
    check_labels(y, logits)
    logits = at_least_float32(logits)
    return one_hot(y, logits.shape[1]).to(logits.dtype) - logits.softmax(1)


def residual_size(logits: Tensor, y: Tensor) -> Tensor:
    """||e_y - softmax(z)||_2 of each sample, (N,): from 0, all right, to sqrt(2), surely wrong.

    Args:
        logits: z, (N, C).
        y: labels (N,), int64.
    """
    say(residual_size_cost(len(logits), logits.shape[-1]))
    return residual(logits, y).norm(dim=1)

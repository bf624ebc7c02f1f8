"""A forward whose graph is kept: several gradients from it, or one that is asked for later."""

from collections.abc import Callable

import torch
from torch import Tensor

from roli_fast.errors import ArgumentError, describe
from roli_fast.losses import Loss


class KeptForward:
    """The logits of one forward, and gradients with respect to its input; made by the engine.

    An attack that decides by the logits whether it needs a gradient, or needs one for each class,
    pays one forward for all of it. The graph's memory is held as long as this object.
    """

    def __init__(
        self, leaf: Tensor, y: Tensor, logits: Tensor, count: Callable[[int], None]
    ) -> None:
        self._leaf, self._y, self._logits, self._count = leaf, y, logits, count

    @property
    def logits(self) -> Tensor:
        """Logits (B, C), detached."""
        return self._logits.detach()

    def gradient(self, loss: Loss, *, last: bool = True) -> tuple[Tensor, Tensor]:
        """One input-backward.

        Args:
            loss: per-sample loss, (logits (B, C), y (B,)) -> (B,).
            last: free the graph; False where another gradient follows.

        Returns:
            The gradient of the summed loss (like x) and the per-sample loss (B,), both detached.

        Raises:
            ArgumentError: the logits do not depend on the input.
        """
        with torch.inference_mode(False), torch.enable_grad():
            values = loss(self._logits, self._y)
            grad = input_gradient(values, self._leaf, keep=not last)
        self._count(len(self._leaf))
        return grad, values.detach()


def input_gradient(loss: Tensor, leaf: Tensor, *, keep: bool = False) -> Tensor:
    """The gradient of the summed loss with respect to `leaf`; `keep` keeps the graph.

    Raises:
        ArgumentError: the loss does not depend on `leaf`.
    """
    grad = None
    if loss.requires_grad:
        (grad,) = torch.autograd.grad(loss.sum(), leaf, allow_unused=True, retain_graph=keep)
    if grad is None:
        raise ArgumentError(
            describe(
                "model",
                "logits that depend on x through differentiable operations",
                "logits without a path to x",
                "Remove `torch.no_grad`, `.detach()` or `.data` from its forward.",
            )
        )
    return grad

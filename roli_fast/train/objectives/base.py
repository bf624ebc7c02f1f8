"""The interface of an objective, and the table of all of them."""

from typing import NamedTuple

from torch import Generator, Tensor, nn

from roli_fast.attacks import Attack
from roli_fast.registry import Registry


class Terms(NamedTuple):
    """`loss`: scalar with a graph. `logits`: (B, C) on the images trained on, detached."""

    loss: Tensor
    logits: Tensor


class Objective:
    """Base of all objectives. A subclass is a frozen dataclass: its fields configure it."""

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, attack: Attack | None, generator: Generator
    ) -> Terms:
        """The loss of one batch.

        Args:
            model: in the mode in which it is updated.
            x: clean images (B, ...) in the bounds.
            y: labels (B,).
            attack: makes the training images from `x`; None trains on clean images.
            generator: source of the attack's randomness.
        """
        raise NotImplementedError


OBJECTIVES: Registry[type[Objective]] = Registry("objective")

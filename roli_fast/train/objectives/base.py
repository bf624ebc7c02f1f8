"""The interface of an objective, and the table of all of them."""

from typing import NamedTuple

from torch import Generator, Tensor, nn

from roli_fast.attacks import Attack
from roli_fast.data import Batch
from roli_fast.registry import Registry


class Terms(NamedTuple):
    """`loss`: scalar with a graph. `logits`: (B, C) on the images trained on, detached."""

    loss: Tensor
    logits: Tensor


class Objective:
    """Base of all objectives. A subclass is a frozen dataclass: its fields configure it."""

    def __call__(
        self, model: nn.Module, batch: Batch, attack: Attack | None, generator: Generator
    ) -> Terms:
        """The loss of one batch.

        Args:
            model: in the mode in which it is updated.
            batch: clean images (B, ...) in the bounds and labels on the model's device, and ids.
            attack: makes the training images; None trains on clean images. `attacked` calls it.
            generator: source of the attack's randomness.
        """
        raise NotImplementedError


def attacked(model: nn.Module, batch: Batch, attack: Attack | None, generator: Generator) -> Tensor:
    """The images to train on, (B, ...). What is drawn for a sample depends on the generator and its
    id alone, neither on its place in the batch nor on how large that is."""
    if attack is None:
        return batch.x
    ids = batch.ids.to(batch.x.device, non_blocking=True)  # pinned where that is a GPU
    return attack(model, batch.x, batch.y, generator, sample_ids=ids)


OBJECTIVES: Registry[type[Objective]] = Registry("objective")

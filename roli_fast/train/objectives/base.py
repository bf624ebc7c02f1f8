"""The interface of an objective, and the table of all of them."""

import contextlib
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from roli_fast.attacks import Attack
from roli_fast.data import Batch
from roli_fast.engine import Engine
from roli_fast.registry import Registry


class Terms(NamedTuple):
    """`loss`: scalar with a graph. `logits`: (B, C) on the images trained on, detached."""

    loss: Tensor
    logits: Tensor


class Objective:
    """Base of all objectives. A subclass is a frozen dataclass: its fields configure it."""

    def __call__(
        self,
        model: nn.Module,
        batch: Batch,
        attack: Attack | None,
        generator: Generator,
        engine: Engine,
    ) -> Terms:
        """The loss of one batch. It is called inside `engine.training`: logits may be in bf16, and
        `losses` raise them to fp32.

        Args:
            model: in the mode in which it is updated.
            batch: clean images (B, ...) in the bounds and labels on the model's device, and ids.
            attack: makes the training images; None trains on clean images. `attacked` calls it.
            generator: source of the attack's randomness.
            engine: how the attack's passes are made.
        """
        raise NotImplementedError


def attacked(
    model: nn.Module, batch: Batch, attack: Attack | None, generator: Generator, engine: Engine
) -> Tensor:
    """The images to train on, (B, ...), in the engine's layout. What is drawn for a sample depends
    on the generator and its id alone, neither on its place in the batch nor on how large that is.
    """
    if attack is None:
        return engine.laid_out(batch.x)
    ids = batch.ids.to(batch.x.device, non_blocking=True)  # pinned where that is a GPU
    # the attack's passes see to their own precision: those around it are the training forward's
    apart = contextlib.nullcontext()
    if engine.short_dtype is not None:
        apart = torch.autocast(batch.x.device.type, enabled=False)
    with apart:
        found = attack(model, batch.x, batch.y, generator, engine=engine, sample_ids=ids)
    return engine.laid_out(found)


OBJECTIVES: Registry[type[Objective]] = Registry("objective")

"""An update or a validation that runs out of memory says which batch size would fit."""

import contextlib
from collections.abc import Callable
from dataclasses import replace

import torch

from roli_fast.data import Batch, ImageDataset
from roli_fast.engine import Engine, InputGradient
from roli_fast.models import Classifier
from roli_fast.running.memory import explained, meter_of
from roli_fast.train.stage import Stage

IN_PARTS = "Or raise accumulate, with --resume as well: the update stays the same."


def fitted(  # noqa: PLR0913 - what an update consists of
    stage: Stage,
    name: str,
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    work: Callable[[Batch], object],
    *,
    parts: int = 1,
) -> contextlib.AbstractContextManager[None]:
    """Within, forward and backward of an update; out of memory becomes `OutOfMemoryError`.

    Weights and optimiser are as before the update, gradients are gone; the running statistics of
    batch normalisation have seen some more images.

    Args:
        stage: whose `batch_size` is named.
        name: its name in the run.
        model: what is trained.
        optimizer: of the stage; before its first step it has all its memory still to take.
        batch: the images of this update, or of one part of it.
        work: the same forward and backward, on a few of the images.
        parts: into how many such parts an update is split.
    """

    def some(count: int) -> None:
        work(Batch(batch.x[:count], batch.y[:count], batch.ids[:count]))
        optimizer.zero_grad(set_to_none=True)

    return explained(
        "batch_size",
        stage.batch_size,
        some,
        meter_of(batch.x.device),
        parts=parts,
        where=f"stage '{name}': ",
        fix=IN_PARTS,
        later=later(optimizer),
        first=lambda: optimizer.zero_grad(set_to_none=True),
    )


def checked(
    stage: Stage,
    name: str,
    model: Classifier,
    dataset: ImageDataset,
    device: torch.device,
    *,
    engine: Engine,
    world: int,
) -> contextlib.AbstractContextManager[None]:
    """Within, an evaluation in parts of the stage's batches, likewise.

    It is in fp32, so a stage that trains in bf16 may fit where its validation does not.

    Args:
        stage: whose `batch_size` is named.
        name: what is evaluated, for the message.
        model: likewise.
        dataset: its images.
        device: where they go.
        engine: how attacks' passes are made.
        world: how many processes share them.
    """
    own = replace(engine, cuda_graph=False)

    def gradient(count: int) -> None:
        batch = dataset.plain().batch(torch.arange(min(count, len(dataset))))
        with InputGradient(own.bind(model)) as one, torch.no_grad():
            one(batch.x.to(device), batch.y.to(device))

    size = stage.batch_size
    parts = -(-size // stage.part_size(world))
    meter = meter_of(device)
    where = f"{name}: "
    return explained("batch_size", size, gradient, meter, parts=parts, where=where, fix=IN_PARTS)


def later(optimizer: torch.optim.Optimizer) -> int:
    """Bytes that the first step will take: two moments, of Adam."""
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    return 0 if optimizer.state else 2 * sum(p.nbytes for p in trained)

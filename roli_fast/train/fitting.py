"""An update that runs out of memory says which batch size would fit."""

import contextlib
from collections.abc import Callable

import torch

from roli_fast.data import Batch
from roli_fast.models import Classifier
from roli_fast.running.memory import explained, meter_of
from roli_fast.train.stage import Stage


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
        later=later(optimizer),
        first=lambda: optimizer.zero_grad(set_to_none=True),
    )


def later(optimizer: torch.optim.Optimizer) -> int:
    """Bytes that the first step will take: two moments, of Adam."""
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    return 0 if optimizer.state else 2 * sum(p.nbytes for p in trained)

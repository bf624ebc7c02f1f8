"""Batches of a split: the order and the augmentation are functions of (seed, epoch) alone."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from roli_fast.data.pixels import sent
from roli_fast.data.splits import Batch, ImageDataset, scaled
from roli_fast.errors import ArgumentError, DataError, describe
from roli_fast.seeds import derived_generator


def num_batches(dataset: ImageDataset, *, batch_size: int, drop_last: bool = False) -> int:
    """How many batches an epoch has: N / batch_size, rounded up, or down with `drop_last`.

    Raises:
        ArgumentError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ArgumentError(describe("batch_size", "an integer >= 1", batch_size))
    full, rest = divmod(len(dataset), batch_size)
    return full + (rest > 0 and not drop_last)


def shares(count: int, most: int) -> list[slice]:
    """`count` images in at most `most` runs of about the same length, in order.

    None is of one image alone, which BatchNorm could not take: rather there are fewer runs.

    Args:
        count: how many images, at least one.
        most: how many runs at most, at least one.
    """
    runs = max(1, min(most, count // 2))
    return [slice(count * run // runs, count * (run + 1) // runs) for run in range(runs)]


def share(count: int, rank: int, world: int) -> slice:
    """What process `rank` of `world` takes of `count` images, by `shares`.

    Where there are too few for all, those left over take what the first takes: whoever uses it
    counts theirs as nothing, and every process has been through the same operations.
    """
    runs = shares(count, world)
    return runs[rank] if rank < len(runs) else runs[0]


def batches(  # noqa: PLR0913 - one call, and each option is independent of the others
    dataset: ImageDataset,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    shuffle: bool,
    drop_last: bool = False,
    start: int = 0,
    workers: int = 0,
    device: str | torch.device = "cpu",
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """One epoch of `dataset`, augmented for (seed, epoch) if it is a training split.

    The same arguments give the same batches, bit for bit, with any number of workers and from
    any `start`; the global random states are neither used nor changed.

    Args:
        dataset: the samples; `dataset.plain()` for no augmentation.
        batch_size: samples per batch; the last one may be smaller.
        seed: of the order and of the augmentation.
        epoch: the same seed gives each epoch its own order and augmentation.
        shuffle: whether to shuffle; otherwise the data set's own order.
        drop_last: leave out a last, smaller batch.
        start: how many batches to skip, without decoding them; resumes within an epoch.
        workers: processes that decode; started anew each epoch, so 0 suits data in memory.
        device: where `x` and `y` go, through pinned memory and as uint8 when it is a GPU; `ids`
            stay on the CPU, where augmentation draws by them.
        rank: give only this process's `share` of each batch.
        world: of how many processes.

    Returns:
        An iterator of `Batch(x, y, ids)`.

    Raises:
        ArgumentError: at once, for a `batch_size` below 1.
        DataError: while iterating, when an image cannot be read.
    """
    total = num_batches(dataset, batch_size=batch_size, drop_last=drop_last)
    order = torch.arange(len(dataset))
    if shuffle:
        order = torch.randperm(len(dataset), generator=derived_generator("order", seed, epoch))
    chunks = list(order.split(batch_size))[start:total]
    chunks = [chunk[share(len(chunk), rank, world)] for chunk in chunks]
    return _iterate(_ByBatch(dataset.at_epoch(epoch, seed)), chunks, workers, torch.device(device))


@dataclass(frozen=True, eq=False)
class _ByBatch(Dataset[Batch | DataError]):
    """Reads a whole batch at a time; an error travels back as a value, without worker noise."""

    dataset: ImageDataset

    def __getitem__(self, index: Tensor) -> Batch | DataError:
        try:
            return self.dataset.raw(index)
        except DataError as error:
            return error


def _own_group(_worker: int) -> None:
    """Let a worker leave the run's process group: who signals the group, as a terminal and many job
    schedulers do, means the run, which stops its workers itself. They also end when it is gone."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


def _iterate(
    source: _ByBatch, chunks: list[Tensor], workers: int, device: torch.device
) -> Iterator[Batch]:
    items: Iterable[Batch | DataError] = map(source.__getitem__, chunks)
    if workers and chunks and not source.dataset.on_gpu:  # a worker cannot read what lies there
        source[chunks[0][:1]]  # what one file tells of all, the bits in use, workers know from here
        items = DataLoader(
            source,
            batch_size=None,  # each chunk is a batch already
            sampler=chunks,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # else the loader draws from the global one
            worker_init_fn=_own_group,
        )
    for item in items:
        if isinstance(item, DataError):
            raise item
        ids = item.ids.pin_memory() if device.type == "cuda" else item.ids
        yield scaled(Batch(sent(item.x, device), sent(item.y, device), ids))

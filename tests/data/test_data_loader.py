"""Batches: order, resume, workers, errors."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from tiny_data import write_folder
from torch import Tensor

from roli_fast.data import Batch, ImageDataset, batches, num_batches, shares
from roli_fast.data.image_folder import ImageFolder
from roli_fast.data.pixels import ArrayPixels
from roli_fast.data.transforms import training_transform
from roli_fast.errors import ArgumentError, DataError

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def dataset(count: int = 10) -> ImageDataset:
    images = torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8)
    rows = torch.arange(count)
    return ImageDataset(ArrayPixels(images), rows + 0, rows % 2, 8, None, training_transform(8))


def epoch(data: ImageDataset, **options: object) -> Iterator[Batch]:
    chosen = {"batch_size": 4, "seed": 0, "epoch": 0, "shuffle": True, **options}
    return batches(data, **chosen)  # pyright: ignore


def ids_of(data: ImageDataset, **options: object) -> list[list[int]]:
    return [batch.ids.tolist() for batch in epoch(data, **options)]


def same(found: list[Batch], expected: list[Batch]) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(torch.equal(a.cpu(), b) for x, y in pairs for a, b in zip(x, y, strict=True))


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    """Every sample once, whatever the batch size; without shuffle in the data set's order."""
    orders = [
        sum(ids_of(dataset(), seed=seed, epoch=number, batch_size=size), [])
        for seed, number, size in ((0, 0, 4), (0, 1, 4), (1, 0, 4), (0, 0, 3))
    ]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert orders[0] == orders[3] and len(set(map(tuple, orders))) == 3
    assert ids_of(dataset(), shuffle=False) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize(
    ("drop", "count", "expected"), [(False, 10, 3), (True, 10, 2), (True, 8, 2)]
)
def test_an_epoch_has_its_batches_and_is_resumed_from_any(
    drop: bool, count: int, expected: int
) -> None:
    data = dataset(count)
    whole = list(epoch(data, drop_last=drop))
    assert num_batches(data, batch_size=4, drop_last=drop) == len(whole) == expected
    for start in (0, 1, 2, 9):
        assert same(list(epoch(data, drop_last=drop, start=start)), whole[start:])
    with pytest.raises(ArgumentError, match="`batch_size`: expected an integer >= 1, got 0"):
        epoch(data, batch_size=0)


@dataclass(eq=False)
class Recorded:
    """Pixels that note which rows were decoded."""

    rows: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return 10

    def read(self, row: int) -> Tensor:
        self.rows.append(row)
        return torch.full((3, 8, 8), row, dtype=torch.uint8)

    def name(self, row: int) -> str:
        return str(row)


def test_skipped_batches_are_not_decoded() -> None:
    pixels, rows = Recorded(), torch.arange(10)
    data = ImageDataset(pixels, rows, rows % 2, 8, None, training_transform(8))  # pyright: ignore
    ids = ids_of(data, start=2)
    assert len(ids) == 1 and pixels.rows == ids[0]


def test_files_give_the_same_with_workers_also_an_error(tmp_path: Path) -> None:
    """A damaged image stops the epoch with its path and class."""
    root = write_folder(tmp_path, {"cat": 6, "dog": 6})
    train = ImageFolder(str(root), image_size=80).load().train
    next(epoch(train, workers=2, batch_size=1))  # left early, it stops its workers silently
    alone, helped = (list(epoch(train, workers=workers)) for workers in (0, 2))
    assert alone[0][0].shape == (4, 3, 80, 80) and same(helped, alone)
    bad = root / train.name(0)
    bad.write_bytes(b"")
    for workers in (0, 2):
        with pytest.raises(DataError) as caught:
            list(epoch(train, workers=workers))
        text = str(caught.value)
        assert str(bad) in text and f"class {bad.parent.name!r}" in text
        assert "Traceback" not in text and "worker" not in text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_reach_the_gpu_unchanged(workers: int) -> None:
    """Images kept on the GPU without waiting for it."""
    data, gpu = dataset(), torch.device("cuda")
    assert isinstance(data.pixels, ArrayPixels)
    for there in epoch(data, device=gpu, workers=workers):
        assert there.x.is_cuda and there.y.is_cuda and not there.ids.is_cuda
    assert same(list(epoch(data, device=gpu, workers=workers)), list(epoch(data)))
    kept = replace(data, pixels=data.pixels.kept_on(gpu))
    assert kept.on_gpu
    list(epoch(kept, device=gpu))  # kernels are loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = list(epoch(kept, device=gpu, workers=workers))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert same(found, list(epoch(data)))


@pytest.mark.parametrize(("count", "most"), [(1, 4), (2, 2), (3, 2), (7, 3), (64, 4)])
def test_shares_are_all_images_in_order_and_none_is_one_image(count: int, most: int) -> None:
    runs = shares(count, most)
    assert [place for run in runs for place in range(count)[run]] == list(range(count))
    sizes = [run.stop - run.start for run in runs]
    assert len(sizes) <= most and max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(2, count)
    assert len(sizes) == most or count // most < 2  # fewer only where there is no other way


def test_processes_share_every_batch_of_one_order() -> None:
    parts = [ids_of(dataset(16), batch_size=7, rank=rank, world=3) for rank in range(3)]
    for ids, *own in zip(ids_of(dataset(16), batch_size=7), *parts, strict=True):
        used = len(shares(len(ids), 3))
        assert sum(own[:used], []) == ids
        assert all(extra == own[0] for extra in own[used:])  # too few images for all

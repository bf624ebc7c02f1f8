"""The two types that training and evaluation see of data: `ImageDataset` and `Splits`."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from roli_fast.data.pixels import ArrayPixels, Pixels, sent
from roli_fast.data.transforms import Transform, uniform_draws
from roli_fast.errors import DataError, describe


class Batch(NamedTuple):
    """Images `x` float32 (B, C, H, W) in [0, 1], labels `y` int64 (B,), sample `ids` int64 (B,)."""

    x: Tensor
    y: Tensor
    ids: Tensor


@dataclass(frozen=True, eq=False)
class ImageDataset(Dataset[tuple[Tensor, int, int]]):
    """One split: `dataset[i] -> (image float32 (C, H, W) in [0, 1], label, sample id)`.

    Augmentation is a function of (seed, epoch, sample id): neither the batch size nor the number
    of workers changes it, and the global random state is left alone.

    Args:
        pixels: the images of the whole data set; the splits share it.
        ids: int64 (N,), this split's rows of `pixels`; unique over all splits.
        labels: int64 (N,), in [0, number of classes).
        image_size: height and width of what comes out, in pixels.
        prepare: brings any image to that size; None where `pixels` has it already.
        augment: the random transform used instead of `prepare`; None for none.
        seed: the seed of the augmentation.
        epoch: the epoch of the augmentation.
    """

    pixels: Pixels
    ids: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    image_size: int
    prepare: Transform | None = None
    augment: Transform | None = None
    seed: int = 0
    epoch: int = 0

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.ids)

    @property
    def on_gpu(self) -> bool:
        """Whether its images lie on a GPU, see `Splits.kept_on`."""
        return isinstance(self.pixels, ArrayPixels) and self.pixels.images.is_cuda

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        """Sample `index`: (image float32 (C, H, W) in [0, 1], label, sample id)."""
        x, y, ids = self.batch(torch.tensor([index]))
        return x[0], int(y), int(ids)

    def batch(self, indices: Tensor) -> Batch:
        """The samples at `indices` (int64 (B,)), bit for bit what `dataset[i]` gives for each.

        Raises:
            DataError: an image file cannot be read.
        """
        return scaled(self.raw(indices))

    def raw(self, indices: Tensor) -> Batch:
        """As `batch`, with `x` still uint8. Images in memory are transformed all at once, where
        they lie; `y` and `ids` are on the CPU.
        """
        ids = self.ids[indices]
        transform = self.augment or self.prepare
        uniform = uniform_draws(self.seed, self.epoch, ids, transform.draws if transform else 0)
        if isinstance(self.pixels, ArrayPixels):
            images = self.pixels.batch(ids)
            images = transform(images, sent(uniform, images.device)) if transform else images
        else:
            read = (self.pixels.read(row)[None] for row in ids.tolist())
            drawn = zip(read, uniform.split(1), strict=True)
            images = torch.cat([transform(x, u) if transform else x for x, u in drawn])
        return Batch(images, self.labels[indices], ids)

    def at_epoch(self, epoch: int, seed: int | None = None) -> "ImageDataset":
        """The view whose augmentation is that of `epoch` (and of `seed`, if given)."""
        return replace(self, epoch=epoch, seed=self.seed if seed is None else seed)

    def plain(self) -> "ImageDataset":
        """The view without augmentation, for evaluation on these samples."""
        return replace(self, augment=None)

    def subset(self, indices: Tensor | Sequence[int]) -> "ImageDataset":
        """The view of the samples at `indices`; ids and augmentation stay what they are."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return replace(self, ids=self.ids[chosen], labels=self.labels[chosen])

    def name(self, index: int) -> str:
        """What a person calls sample `index`: its relative path, or its row."""
        return self.pixels.name(int(self.ids[index]))


def scaled(batch: Batch) -> Batch:
    """uint8 images as fp32 ones in [0, 1], where they lie: k / 255, the nearest number to it."""
    x = batch.x.to(torch.float32)
    # by a tensor: a GPU multiplies by the reciprocal of a plain number, which rounds once more
    return batch._replace(x=x.div_(x.new_full((), 255.0)))


@dataclass(frozen=True)
class Splits:
    """Train, validation and test samples of one data set, with one label map.

    Raises:
        DataError: a split is empty, a sample is in two splits, a label is out of range, or
            a class has no training sample.
    """

    train: ImageDataset
    val: ImageDataset
    test: ImageDataset
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check what every split must keep."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        for name, dataset in named.items():
            if not len(dataset):
                raise DataError(describe(name, "at least one sample", "an empty split"))
            low, high = int(dataset.labels.min()), int(dataset.labels.max())
            if low < 0 or high >= self.num_classes:
                expected = f"labels in [0, {self.num_classes})"
                raise DataError(describe(name, expected, f"labels from {low} to {high}"))
        for (first, a), (second, b) in combinations(named.items(), 2):
            shared = a.ids[torch.isin(a.ids, b.ids)].tolist()
            if shared:
                examples = ", ".join(a.pixels.name(row) for row in shared[:3])
                got = f"{len(shared)} samples of {first} again ({examples})"
                fix = "Keep each sample in one split."
                raise DataError(describe(second, f"no sample of {first}", got, fix))
        missing = sorted(set(range(self.num_classes)) - set(self.train.labels.tolist()))
        if missing:
            names = ", ".join(repr(self.classes[label]) for label in missing[:5])
            fix = "Add training images, or leave the class out of every split."
            got = f"none for {len(missing)} of {self.num_classes} ({names})"
            raise DataError(describe("train", "samples of every class", got, fix))

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    def kept_on(self, device: torch.device) -> "Splits":
        """The splits with their images on `device`, if it is a GPU with room for them.

        Only images in memory that need no resizing, which a GPU rounds otherwise than a CPU.
        """
        parts, pixels = (self.train, self.val, self.test), self.train.pixels
        alike = all(part.pixels is pixels and part.prepare is None for part in parts)
        if not (alike and isinstance(pixels, ArrayPixels)):
            return self
        moved = pixels.kept_on(device)
        train, val, test = (replace(part, pixels=moved) for part in parts)
        return Splits(train, val, test, self.classes)

    def summary(self) -> str:
        """One line for logs and reports."""
        sizes = f"train {len(self.train)}, val {len(self.val)}, test {len(self.test)}"
        side = self.train.image_size
        return f"{self.num_classes} classes, {sizes} images of {side}x{side}"

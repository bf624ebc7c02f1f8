"""What every data set has in common: its options, and the way from a table of samples to splits."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from roli_fast.data import stratify
from roli_fast.data.pixels import ArrayPixels, FilePixels, Pixels
from roli_fast.data.splits import ImageDataset, Splits
from roli_fast.data.transforms import SMALL, Transform, evaluation_transform, training_transform
from roli_fast.errors import ArgumentError, check_choice, describe
from roli_fast.registry import Registry

SPLITS = ("train", "val", "test")


class FileTable(NamedTuple):
    """The samples of a data set on disk, before any image is opened.

    Args:
        paths: N relative paths, sorted, so that a row, the sample id, is reproducible.
        labels: int64 (N,).
        rows: split -> int64 rows, ascending.
        classes: the name of each label.
    """

    paths: tuple[str, ...]
    labels: Tensor
    rows: dict[str, Tensor]
    classes: tuple[str, ...]


def file_table(entries: Mapping[str, Sequence[tuple[str, int | str]]]) -> FileTable:
    """The table of `entries`, split -> (path, class); paths are unique over all splits.

    Labels follow the sorted classes of all splits: integers in numeric, texts in alphabetical
    order.
    """
    found = sorted((path, split, kind) for split, pairs in entries.items() for path, kind in pairs)
    classes = sorted({kind for *_, kind in found})
    label = {kind: number for number, kind in enumerate(classes)}
    rows: dict[str, list[int]] = {split: [] for split in entries}
    for row, (_, split, _) in enumerate(found):
        rows[split].append(row)
    return FileTable(
        tuple(path for path, *_ in found),
        torch.tensor([label[kind] for *_, kind in found]).long(),
        {split: torch.tensor(of).long() for split, of in rows.items()},
        tuple(map(str, classes)),
    )


@dataclass(frozen=True, kw_only=True)
class DataSource(ABC):
    """A data set and its configuration; `load()` reads it.

    Args:
        image_size: height and width of the images given out, in pixels.
        channels: 3 for RGB, 1 for grey, for a network with model.options.in_chans 1.
        bit_depth: how many bits of grey image files of 16 are in use, 12 say for what comes out of
            a scanner: black to white is 0 to 2^bit_depth - 1. None takes the bits of the brightest
            pixel of all files, one number for the whole data set; set it where another folder of
            the same camera is read as well.
        augment: whether the training split is augmented.
        seed: drives the choice of samples (splits that are cut, `max_per_class`) and, unless a
            loader overrides it, the augmentation.
        max_per_class: at most this many samples of each class in each split, for quick runs.

    Raises:
        ArgumentError: an option is out of range.
    """

    image_size: int = 224
    channels: int = 3
    bit_depth: int | None = None
    augment: bool = True
    seed: int = 0
    max_per_class: int | None = None

    def __post_init__(self) -> None:
        """Check the options; a subclass that adds its own checks calls this too."""
        for name in ("image_size", "max_per_class"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArgumentError(describe(name, "an integer >= 1", value))
        check_choice("channels", self.channels, (1, 3))
        if self.bit_depth is not None and not 8 <= self.bit_depth <= 16:
            raise ArgumentError(describe("bit_depth", "an integer from 8 to 16", self.bit_depth))

    @abstractmethod
    def load(self) -> Splits:
        """Read the data set.

        Raises:
            DataError: something on disk is missing, damaged or inconsistent.
            ArgumentError: a fraction to cut is impossible.
        """

    def train_transform(self) -> Transform:
        """The augmentation of the training split; a data set may bring its own."""
        return training_transform(self.image_size)

    def split(
        self,
        pixels: Pixels,
        labels: Tensor,
        rows: Mapping[str, Tensor],
        classes: Sequence[str],
        *,
        shares: Mapping[str, float] | None = None,
    ) -> Splits:
        """Build the splits over one table of samples.

        Args:
            pixels: the images of all splits, N rows.
            labels: int64 (N,), one label per row.
            rows: "train", and what else is known of "val" and "test" -> int64 rows; a row is the
                sample's id.
            classes: the name of each label.
            shares: "test" and "val", where they are missing -> the share to cut from "train".
        """
        if shares:
            train = rows["train"]
            cut = stratify.cut(train, labels, pixels, classes, seed=self.seed, shares=shares)
            rows = {**rows, **cut}
        if self.channels == 1:
            pixels = pixels.grey()
        side = self.image_size
        exact = isinstance(pixels, ArrayPixels) and pixels.images.shape[-2:] == (side, side)
        prepare = None if exact and side <= SMALL else evaluation_transform(side)

        def dataset(name: str, augment: Transform | None = None) -> ImageDataset:
            ids = stratify.cap(rows[name], labels, pixels, seed=self.seed, most=self.max_per_class)
            return ImageDataset(pixels, ids, labels[ids], side, prepare, augment, self.seed)

        augment = self.train_transform() if self.augment else None
        return Splits(dataset("train", augment), dataset("val"), dataset("test"), tuple(classes))

    def split_files(
        self, root: Path, table: FileTable, *, shares: Mapping[str, float] | None = None
    ) -> Splits:
        """`split` of a table of image files below `root`."""
        names = tuple(table.classes[label] for label in table.labels.tolist())
        pixels = FilePixels(root, table.paths, names, self.bit_depth)
        return self.split(pixels, table.labels, table.rows, table.classes, shares=shares)


DATASETS: Registry[type[DataSource]] = Registry("data set")

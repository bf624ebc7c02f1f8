"""CIFAR-10 and CIFAR-100 in their original files, read by torchvision."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torchvision import datasets

from roli_fast.data.pixels import ArrayPixels
from roli_fast.data.source import DATASETS, DataSource
from roli_fast.data.splits import Splits
from roli_fast.errors import DataError, describe


@dataclass(frozen=True)
class _Cifar(DataSource):
    """50,000 training and 10,000 test images of 32x32; validation is a fixed part of train.

    A network for larger images takes them with model.resize: 224, inside the model, so that the
    attack works on the 32x32 pixels.

    Args:
        root: the folder that holds (or gets) the unpacked archive.
        image_size: height and width in pixels; 32 leaves the images as they are.
        val_fraction: share of the training images for validation, in (0, 1).
        download: fetch the archive if it is missing; nothing is fetched otherwise.
        augment: pad by 4, crop and flip training images; off by default, as in the RoLI paper.
        seed: another seed, another 10 % for validation.
    """

    root: str
    _: KW_ONLY
    image_size: int = 32
    augment: bool = False
    val_fraction: float = 0.1
    download: bool = False

    reader: ClassVar[type[datasets.CIFAR10]]

    def load(self) -> Splits:
        """Read both parts into memory. Sample ids: train in file order, then test."""
        train, test = self._read(train=True), self._read(train=False)
        images = torch.from_numpy(np.concatenate([train.data, test.data]))
        pixels = ArrayPixels(images.permute(0, 3, 1, 2).contiguous())
        labels = torch.tensor([*train.targets, *test.targets], dtype=torch.int64)
        seen, unseen = torch.arange(len(labels)).split([len(train), len(test)])
        rows, shares = {"train": seen, "test": unseen}, {"val": self.val_fraction}
        return self.split(pixels, labels, rows, train.classes, shares=shares)

    def _read(self, *, train: bool) -> datasets.CIFAR10:
        try:
            return self.reader(self.root, train=train, download=self.download)
        except (RuntimeError, OSError) as error:
            folder = Path(self.root) / self.reader.base_folder
            expected = f"the unpacked {self.reader.__name__} archive in {folder}"
            fix = "Set download=True to fetch it, or point root at the folder above it."
            got = str(error).splitlines()[0].rstrip(".") if self.download else "missing or damaged"
            raise DataError(describe("root", expected, got, fix)) from error


@DATASETS.register("cifar10")
@dataclass(frozen=True)
class Cifar10(_Cifar):
    __doc__ = _Cifar.__doc__
    reader = datasets.CIFAR10


@DATASETS.register("cifar100")
@dataclass(frozen=True)
class Cifar100(_Cifar):
    __doc__ = _Cifar.__doc__
    reader = datasets.CIFAR100

"""Anybody's `torch.utils.data.Dataset` of (image, label) as a data set of this package."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset
from torchvision.transforms.v2.functional import pil_to_tensor

from roli_fast.data.pixels import to_8_bits, to_grey, to_rgb
from roli_fast.data.source import DATASETS, DataSource
from roli_fast.data.splits import Splits
from roli_fast.errors import ArgumentError, DataError, describe
from roli_fast.registry import import_object
from roli_fast.running.progress import progress_bar

GIVEN = "given:"
"""Begins the name of data sets that were handed in as objects, in this process."""

IMAGE_KEYS, LABEL_KEYS = ("image", "img", "pixel_values"), ("label", "labels", "fine_label")
"""Where an item that is a mapping, as those of Hugging Face's `datasets` are, has its parts."""


class Parts(NamedTuple):
    """Data sets of (image, label); what is None is cut from `train`."""

    train: Dataset[Any]
    test: Dataset[Any] | None = None
    val: Dataset[Any] | None = None
    classes: tuple[str, ...] = ()

    def given(self) -> dict[str, Any]:
        """Name of the split -> its data set, of those that there are."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: dataset for name, dataset in named.items() if dataset is not None}


_given: dict[str, Parts] = {}


def from_datasets(
    train: Dataset[Any],
    test: Dataset[Any] | None = None,
    val: Dataset[Any] | None = None,
    *,
    classes: Sequence[str] = (),
    image_size: int | None = None,
    augment: bool | None = None,
    **options: Any,
) -> "TorchDatasets":
    """The data set of one to three map-style data sets, as everything here takes it.

    An item is (image, label): the image a PIL image, a uint8 or uint16 tensor or array, or a float
    tensor in [0, 1], which is rounded to 8 bits; or it is a mapping with "image" and "label". The
    data sets' own transforms run as they are, so leave the normalisation out of them: the model
    normalises. One that draws at random makes the epochs of a run other ones when it is repeated.

    Args:
        train: what is trained on.
        test: what the final table is about; None cuts it from `train`.
        val: what chooses the best epoch; None cuts it from `train`.
        classes: the names of the labels 0, 1, ...; by default those of `train.classes`.
        image_size: height and width that all images are brought to; None takes that of the first.
        augment: resize, crop and flip training images; None does so for PIL images, and leaves
            tensors to the data set's own transform.
        **options: further fields of `TorchDatasets`: val_fraction, test_fraction, channels,
            bit_depth, max_per_class, seed.

    Raises:
        ArgumentError: a data set that is not map-style, or images that are not square and no
            `image_size`.
        DataError: an item that is not (image, label), or images outside [0, 1].
    """
    parts = Parts(train, test, val, tuple(map(str, classes)) or _names(train))
    for name, dataset in parts.given().items():
        _check_map_style(name, dataset)
    first = split_item("train", 0, train[0])[0]
    if image_size is None:
        height, width = to_pixels("train", 0, first).shape[-2:]
        if height != width:
            fix = "Call data.from_datasets(..., image_size=N): images are resized and cropped."
            got = f"none, and images of {height}x{width}"
            raise ArgumentError(describe("image_size", "a number of pixels", got, fix))
        image_size = int(height)
    name = f"{GIVEN}{type(train).__name__}-{_digest(parts)}"
    _given[name] = parts
    augment = isinstance(first, Image.Image) if augment is None else augment
    return TorchDatasets(name, image_size=image_size, augment=augment, **options)


def _digest(parts: Parts) -> str:
    """Of sizes and some samples: the same in another process that hands in the same data sets. The
    images themselves are looked at where a run begins."""
    found = hashlib.sha256()
    for name, dataset in parts.given().items():
        pixels = DatasetPixels({name: dataset})
        found.update(f"{name} {len(pixels)}".encode())
        for row in range(0, len(pixels), max(1, len(pixels) // 8)):
            found.update(pixels.look(row, decode=True).encode())
    return found.hexdigest()[:12]


@DATASETS.register("torch")
@dataclass(frozen=True)
class TorchDatasets(DataSource):
    """Data sets of torch, torchvision or Hugging Face: `from_datasets`, or by a function's name.

    Args:
        factory: module:function that returns a data set of (image, label), or (train, test), or
            (train, test, val); it is called without arguments.
        val_fraction: share of the training images that is cut for validation where there is none.
        test_fraction: share that is cut for the test where there is none.
        augment: resize, crop and flip training images; false leaves that to the data set.
        bit_depth: as for files; null takes images of 16 bits by their type, all 16.
    """

    factory: str
    _: KW_ONLY
    val_fraction: float = 0.1
    test_fraction: float = 0.2

    def load(self) -> Splits:
        """Read every label; images are read when they are needed."""
        parts = self._parts()
        pixels = DatasetPixels(parts.given(), self.bit_depth or 16)
        known = [_labels(name, dataset) for name, dataset in pixels.datasets.items()]
        labels = torch.cat(known)
        classes = parts.classes or tuple(map(str, range(int(labels.max()) + 1)))
        _check_labels(labels, classes)
        ranges = torch.arange(len(labels)).split([len(part) for part in known])
        rows = dict(zip(pixels.datasets, ranges, strict=True))
        shares = {"test": self.test_fraction, "val": self.val_fraction}
        cut = {name: share for name, share in shares.items() if name not in rows}
        return self.split(pixels, labels, rows, classes, shares=cut)

    def _parts(self) -> Parts:
        if self.factory.startswith(GIVEN):
            if self.factory in _given:
                return _given[self.factory]
            fix = "Hand them in again (roli_fast.fit), or name a function: data.factory=module:f."
            got = repr(self.factory)
            raise ArgumentError(describe("factory", "data sets of this process", got, fix))
        made = import_object("factory", self.factory)()
        found = made if isinstance(made, tuple) else (made,)
        parts = Parts(*found[:3], classes=_names(found[0]))
        for name, dataset in parts.given().items():
            _check_map_style(name, dataset)
        return parts


@dataclass(frozen=True, eq=False)
class DatasetPixels:
    """The images of data sets, one after the other, read by their own `__getitem__`."""

    datasets: Mapping[str, Any] = field(repr=False)
    bit_depth: int = 16
    channels: int = 3

    @cached_property
    def _starts(self) -> list[tuple[int, str]]:
        sizes = map(len, self.datasets.values())
        return list(zip(itertools.accumulate(sizes, initial=0), self.datasets, strict=False))

    def __len__(self) -> int:
        return sum(map(len, self.datasets.values()))

    def read(self, row: int) -> Tensor:
        """The image at `row`: uint8, (C, H, W).

        Raises:
            DataError: it is no image, or has values outside [0, 1].
        """
        split, index = self._place(row)
        image = split_item(split, index, self.datasets[split][index])[0]
        pixels = to_pixels(split, index, image, self.bit_depth)
        pixels = pixels.expand(3, -1, -1) if pixels.shape[0] == 1 else pixels
        return pixels if self.channels == 3 else to_grey(pixels)

    def look(self, row: int, *, decode: bool) -> str:
        """The hash of the image at `row`; of one that a transform makes, which may draw at random,
        of its label."""
        del decode
        split, index = self._place(row)
        if _transformed(self.datasets[split]):
            label = split_item(split, index, self.datasets[split][index])[1]
            return hashlib.sha256(str(label).encode()).hexdigest()
        return hashlib.sha256(self.read(row).contiguous().numpy().tobytes()).hexdigest()

    def grey(self) -> "DatasetPixels":
        return replace(self, channels=1)

    def name(self, row: int) -> str:
        """The split and the index in it, "train/17"."""
        return "/".join(map(str, self._place(row)))

    def _place(self, row: int) -> tuple[str, int]:
        start, split = max(pair for pair in self._starts if pair[0] <= row)
        return split, row - start


def split_item(split: str, index: int, item: Any) -> tuple[Any, Any]:
    """(image, label) of an item.

    Raises:
        DataError: it has no such parts.
    """
    got = type(item).__name__
    if isinstance(item, Mapping):
        image = next((item[key] for key in IMAGE_KEYS if key in item), None)
        label = next((item[key] for key in LABEL_KEYS if key in item), None)
        if image is not None and label is not None:
            return image, label
        got = f"a mapping with {', '.join(map(str, item))}"
    elif isinstance(item, (tuple, list)) and len(item) >= 2:
        return item[0], item[1]
    fix = "Wrap it in a Dataset whose __getitem__ returns (image, label)."
    raise DataError(describe(f"{split}[{index}]", "(image, label)", got, fix))


def to_pixels(split: str, index: int, image: Any, bit_depth: int = 16) -> Tensor:
    """An image as uint8 (C, H, W), C 1 or 3; of one of 16 bits `bit_depth` are in use.

    Raises:
        DataError: it is none, or has values outside [0, 1].
    """
    where = f"{split}[{index}]"
    try:
        if isinstance(image, Image.Image):
            return pil_to_tensor(to_rgb(image, bit_depth))
        if isinstance(image, Tensor) and image.dtype == torch.uint16:
            image = image.numpy()
        if isinstance(image, np.ndarray):
            deep = image.dtype == np.uint16
            image = torch.from_numpy(to_8_bits(image, bit_depth) if deep else image)
    except ValueError as error:
        raise DataError(describe(where, "an image", str(error))) from error
    if not isinstance(image, Tensor) or not 2 <= image.ndim <= 3:
        got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise DataError(describe(where, "a PIL image or a tensor (C, H, W)", got))
    image = image[None] if image.ndim == 2 else image
    if image.shape[0] not in (1, 3) and image.shape[-1] in (1, 3):
        image = image.permute(2, 0, 1)
    if image.shape[0] not in (1, 3):
        raise DataError(describe(where, "1 or 3 channels", tuple(image.shape)))
    if image.dtype == torch.uint8:
        return image
    low, high = (float(value) for value in torch.aminmax(image.float()))
    if not (-1e-4 <= low and high <= 1 + 1e-4):
        fix = "Take the normalisation out of the transform, and give mean and std to the model "
        fix = "Divide by 255." if low >= 0 and high > 2 else f"{fix}(models.wrap)."
        got = f"values from {low:.3g} to {high:.3g}"
        raise DataError(describe(where, "values in [0, 1]", got, fix))
    return image.float().clamp(0, 1).mul(255).round().to(torch.uint8)


def _check_map_style(name: str, dataset: Any) -> None:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        fix = "Attacks and epochs need to come back to an image: collect it, list(dataset) say."
        got = type(dataset).__name__
        raise ArgumentError(describe(name, "a map-style data set, dataset[i]", got, fix))
    if not getattr(dataset, "__len__", int)():
        raise ArgumentError(describe(name, "a data set with a length", "none, or 0 samples"))


def _whole(dataset: Any) -> Any:
    """The data set that a subset is of."""
    return _whole(dataset.dataset) if isinstance(dataset, Subset) else dataset


def _names(dataset: Any) -> tuple[str, ...]:
    """What the data set calls its labels: torchvision's `classes`, the ClassLabel of `datasets`."""
    dataset = _whole(dataset)
    if names := getattr(dataset, "classes", None):
        return tuple(map(str, names))
    features: Any = getattr(dataset, "features", None) or {}
    kinds = [features[key] for key in LABEL_KEYS if key in features]
    return tuple(getattr(kinds[0], "names", ())) if kinds else ()


def _transformed(dataset: Any) -> bool:
    whole = _whole(dataset)
    return any(getattr(whole, name, None) is not None for name in ("transform", "transforms"))


def _labels(name: str, dataset: Any) -> Tensor:
    """All labels, int64 (N,): the data set's list where that is what its items have, else item by
    item."""
    found = _listed(dataset)
    if found is None:
        with progress_bar(f"reading labels of {name}", total=len(dataset), delay=1.0) as bar:
            found = []
            for index in range(len(dataset)):
                found.append(split_item(name, index, dataset[index])[1])
                bar.update(1)
    for index, label in enumerate(found):
        plain = label.tolist() if isinstance(label, (Tensor, np.ndarray)) else label
        if isinstance(plain, bool) or not isinstance(plain, (int, np.integer)):
            fix = "One class an image, as an integer; several labels are not supported."
            raise DataError(describe(f"{name}[{index}]", "an integer label", repr(label)[:60], fix))
    return torch.tensor([int(label) for label in found])


def _listed(dataset: Any) -> list[Any] | None:
    """The labels that torchvision's data sets list, of a subset those of its samples; None where
    items may have others."""
    if isinstance(dataset, Subset):
        whole = _listed(dataset.dataset)
        return whole and [whole[index] for index in dataset.indices]
    targets = getattr(dataset, "targets", None)
    changed = getattr(dataset, "target_transform", None) or getattr(dataset, "transforms", None)
    if targets is None or len(targets) != len(dataset):
        return None
    if changed is not None and getattr(changed, "target_transform", changed) is not None:
        return None
    return list(targets)


def _check_labels(labels: Tensor, classes: Sequence[str]) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(classes) or (low == 1 and not (labels == 0).any()):
        fix = "Subtract 1 (target_transform=lambda y: y - 1)." if low == 1 else ""
        expected = f"labels 0 to {max(len(classes), high) - 1} for {len(classes)} classes"
        raise DataError(describe("label", expected, f"labels from {low} to {high}", fix))

"""What every data set has in common: its options, and the way from a table of samples to splits."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from roli_fast.data import stratify
from roli_fast.data.pixels import ArrayPixels, FilePixels, Pixels
from roli_fast.data.splits import ImageDataset, Splits
from roli_fast.data.transforms import (
    SMALL,
    Transform,
    evaluation_transform,
    training_transform,
)
from roli_fast.errors import ArgumentError, check_choice, describe
from roli_fast.registry import Registry


@dataclass(frozen=True, kw_only=True)
class DataSource(ABC):
    """A data set and its configuration; `load()` reads it.

    Args:
        image_size: height and width of the images given out, in pixels.
        channels: 3 for RGB, 1 for grey, for a network with model.options.in_chans 1.
        augment: whether the training split is augmented.
        seed: drives the choice of samples (splits that are cut, `max_per_class`) and, unless a
            loader overrides it, the augmentation.
        max_per_class: at most this many samples of each class in each split, for quick runs.

    Raises:
        ArgumentError: an option is out of range.
    """

    image_size: int = 224
    channels: int = 3
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

    @abstractmethod
    def load(self) -> Splits:
        """Read the data set.

        Raises:
            DataError: something on disk is missing, damaged or inconsistent.
        """

    def train_transform(self) -> Transform:
        """The augmentation of the training split; a data set may bring its own."""
        return training_transform(self.image_size)

    def split(
        self,
        pixels: ArrayPixels | FilePixels,
        labels: Tensor,
        rows: Mapping[str, Tensor],
        classes: Sequence[str],
    ) -> Splits:
        """Build the splits over one table of samples.

        Args:
            pixels: the images of all splits, N rows.
            labels: int64 (N,), one label per row.
            rows: "train", "val" and "test" -> int64 rows; a row is the sample's id.
            classes: the name of each label.
        """
        if self.channels == 1:
            pixels = pixels.grey()
        prepare = None if self._fits(pixels) else evaluation_transform(self.image_size)

        def dataset(name: str, augment: Transform | None = None) -> ImageDataset:
            ids = stratify.cap(rows[name], labels, pixels, seed=self.seed, most=self.max_per_class)
            return ImageDataset(
                pixels, ids, labels[ids], self.image_size, prepare, augment, self.seed
            )

        augment = self.train_transform() if self.augment else None
        return Splits(dataset("train", augment), dataset("val"), dataset("test"), tuple(classes))

    def _fits(self, pixels: Pixels) -> bool:
        side = self.image_size
        exact = isinstance(pixels, ArrayPixels) and pixels.images.shape[-2:] == (side, side)
        return exact and side <= SMALL


def check_shares(**shares: float) -> None:
    """Check the fractions of samples cut off for validation and test.

    Raises:
        ArgumentError: one is not in (0, 1), or together they leave nothing to train on.
    """
    for name, share in shares.items():
        if not 0 < share < 1:
            raise ArgumentError(describe(name, "a fraction in (0, 1)", share))
    if sum(shares.values()) >= 1:
        names = " + ".join(shares)
        raise ArgumentError(describe(names, "a sum below 1", sum(shares.values())))


DATASETS: Registry[type[DataSource]] = Registry("data set")

"""scikit-learn's handwritten digits: small, always there, good for a first run."""

from dataclasses import KW_ONLY, dataclass

import torch
from torchvision.transforms.v2.functional import resize_image

from roli_fast.data.pixels import ArrayPixels
from roli_fast.data.source import DATASETS, DataSource
from roli_fast.data.splits import Splits
from roli_fast.data.transforms import Crop, Transform
from roli_fast.errors import ArgumentError, describe


@DATASETS.register("digits")
@dataclass(frozen=True)
class Digits(DataSource):
    """1,797 digits of 8x8 grey pixels, scaled up to RGB, in fixed stratified splits.

    Args:
        classes: the digits to keep; labels are 0..C-1 in this order.
        image_size: height and width in pixels; bilinear from 8x8.
        val_fraction: share of the images for validation, in (0, 1).
        test_fraction: share of the images for the test, in (0, 1).
        augment: shift training images by up to one pixel.
    """

    classes: tuple[int, ...] = tuple(range(10))
    _: KW_ONLY
    image_size: int = 16
    val_fraction: float = 0.15
    test_fraction: float = 0.4

    def __post_init__(self) -> None:
        """Raises ArgumentError for repeated or unknown classes."""
        super().__post_init__()
        known = set(self.classes) & set(range(10))
        if not known or len(known) < len(self.classes):
            raise ArgumentError(describe("classes", "different digits of 0 to 9", self.classes))

    def train_transform(self) -> Transform:
        """Shifts by a pixel: a mirrored digit is another sign."""
        return Crop(self.image_size, padding=1, random=True)

    def load(self) -> Splits:
        """Read, scale up and split; nothing is downloaded."""
        from sklearn.datasets import load_digits  # here: nothing else needs scikit-learn

        images, digits = (torch.tensor(array) for array in load_digits(return_X_y=True))
        grey = (images.view(-1, 1, 8, 8) * (255 / 16)).round().to(torch.uint8)
        if self.image_size != 8:
            grey = resize_image(grey, [self.image_size, self.image_size], antialias=True)
        pixels = ArrayPixels(grey.expand(-1, 3, -1, -1).contiguous())
        labels = torch.full_like(digits, -1)
        for label, digit in enumerate(self.classes):
            labels[digits == digit] = label
        rows = {"train": torch.nonzero(labels >= 0).squeeze(1)}
        shares = {"test": self.test_fraction, "val": self.val_fraction}
        return self.split(pixels, labels, rows, [str(d) for d in self.classes], shares=shares)

"""Where pixels come from: a uint8 tensor in memory, or image files decoded when asked for."""

import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from roli_fast.errors import DataError, describe

# What Pillow's decoders raise on damaged files.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    ArithmeticError,
    LookupError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class Pixels(Protocol):
    """All images of a data set, over all splits; a sample's id is its row here."""

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def read(self, row: int) -> Tensor:
        """The image at `row`: uint8, (3, H, W)."""
        ...

    def name(self, row: int) -> str:
        """What a person calls the image at `row`; it also keys the stratified split."""
        ...


@dataclass(frozen=True, eq=False)
class ArrayPixels:
    """Images in memory: `images` is uint8, (N, 3, H, W)."""

    images: Tensor = field(repr=False)

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.images)

    def read(self, row: int) -> Tensor:
        """The image at `row`, a view: uint8, (3, H, W)."""
        return self.images[row]

    def batch(self, rows: Tensor) -> Tensor:
        """The images at `rows`, int64 (B,) on the CPU, where they lie: uint8, (B, 3, H, W)."""
        if self.images.is_cuda:  # without waiting for it
            rows = rows.pin_memory().to(self.images.device, non_blocking=True)
        return self.images.index_select(0, rows)

    def kept_on(self, device: torch.device) -> "ArrayPixels":
        """The images on `device`, if it is a GPU and a quarter of its free memory holds them."""
        if device.type != "cuda" or 4 * self.images.nbytes > torch.cuda.mem_get_info(device)[0]:
            return self
        return ArrayPixels(self.images.to(device))

    def name(self, row: int) -> str:
        """The row, as text."""
        return str(row)


@dataclass(frozen=True, eq=False)
class FilePixels:
    """Image files under `root`, decoded on every read.

    Args:
        root: the folder that `paths` are relative to.
        paths: one relative path per row, with forward slashes.
        class_names: the class of each row, for messages.
    """

    root: Path
    paths: tuple[str, ...] = field(repr=False)
    class_names: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.paths)

    def read(self, row: int) -> Tensor:
        """The image at `row` as RGB: uint8, (3, H, W).

        Grey, palette and CMYK images are converted and an alpha channel is dropped. The EXIF
        orientation is ignored, as it was when the published robust models were trained.

        Raises:
            DataError: the file is missing, damaged, or holds more than 8 bits per channel.
        """
        path = self.root / self.paths[row]
        try:
            with Image.open(path) as image:
                return pil_to_tensor(_to_rgb(image))
        except FileNotFoundError:
            raise self._error(row, "no such file", "Put the file back.") from None
        except _DECODE_ERRORS as error:
            fix = "Restore the file, or take it out of the data set."
            raise self._error(row, str(error) or type(error).__name__, fix) from error

    def name(self, row: int) -> str:
        """The relative path."""
        return self.paths[row]

    def _error(self, row: int, got: str, fix: str) -> DataError:
        expected = f"a readable image of class {self.class_names[row]!r}"
        return DataError(describe(str(self.root / self.paths[row]), expected, got, fix))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # convert() would clip them to white without a word
        raise ValueError(f"mode {image.mode}, more than 8 bits per channel")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the direct conversion warns
    return image.convert("RGB")

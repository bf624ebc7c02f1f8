"""Where pixels come from: a uint8 tensor in memory, or image files decoded when asked for."""

import contextlib
import hashlib
import logging
import os
import stat
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.ExifTags import Base as Tag
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from roli_fast.errors import DataError, describe
from roli_fast.running.progress import progress_bar

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What a file may hold, whatever it is called: Pillow runs Ghostscript on an EPS named x.jpg."""

MOST_PIXELS = 89_478_485
"""Of an image, as Pillow warns of: a few kilobytes can unfold to gigabytes."""

_DECODE_ERRORS = (
    *(OSError, SyntaxError, ValueError, ArithmeticError, LookupError, EOFError),
    *(struct.error, zlib.error),
)
"""What Pillow's decoders raise on damaged files."""

_BLOCK = 64  # images a task of a thread
_SCAN = threading.Lock()  # one thread looks for the bits in use, and the others wait for it

logger = logging.getLogger("roli_fast.data")

Item = TypeVar("Item")
Result = TypeVar("Result")


class Pixels(Protocol):
    """All images of a data set, over all splits; a sample's id is its row here."""

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def read(self, row: int) -> Tensor:
        """The image at `row`: uint8, (C, H, W)."""
        ...

    def name(self, row: int) -> str:
        """What a person calls the image at `row`; it also keys the stratified split."""
        ...

    def grey(self) -> "Pixels":
        """The images with one channel."""
        ...


@dataclass(frozen=True, eq=False)
class ArrayPixels:
    """Images in memory: `images` is uint8, (N, C, H, W)."""

    images: Tensor = field(repr=False)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, row: int) -> Tensor:
        """The image at `row`, a view: uint8, (C, H, W)."""
        return self.images[row]

    def batch(self, rows: Tensor) -> Tensor:
        """The images at `rows`, int64 (B,) on the CPU, where they lie: uint8, (B, C, H, W)."""
        return self.images.index_select(0, sent(rows, self.images.device))

    def kept_on(self, device: torch.device) -> "ArrayPixels":
        """The images on `device`, if it is a GPU and a quarter of its free memory holds them."""
        if device.type != "cuda" or 4 * self.images.nbytes > torch.cuda.mem_get_info(device)[0]:
            return self
        return ArrayPixels(self.images.to(device))

    def grey(self) -> "ArrayPixels":
        return ArrayPixels(to_grey(self.images))

    def name(self, row: int) -> str:
        return str(row)


@dataclass(frozen=True, eq=False)
class FilePixels:
    """Image files under `root`, decoded on every read.

    Args:
        root: the folder that `paths` are relative to.
        paths: one relative path per row, with forward slashes.
        class_names: the class of each row, for messages.
        bit_depth: how many of the 16 bits of grey files are in use; None looks, see `bits`.
        channels: 3 for RGB, 1 for grey.
    """

    root: Path
    paths: tuple[str, ...] = field(repr=False)
    class_names: tuple[str, ...] = field(repr=False)
    bit_depth: int | None = None
    channels: int = 3

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, row: int) -> Tensor:
        """The image at `row`, turned as its EXIF block says: uint8, (C, H, W).

        Grey, palette and CMYK images are converted, an alpha channel is dropped, and grey of 16
        bits becomes 8, the whole range of the `bits` in use that of the other.

        Raises:
            DataError: the file is missing, no regular file, none of `FORMATS`, damaged, of more
                than `MOST_PIXELS`, or of more than 16 bits a channel.
        """
        with self._file(row) as file, _image(file) as image:
            pixels = pil_to_tensor(to_rgb(image, self.bits if _has_16_bits(image) else 16))
        return pixels if self.channels == 3 else to_grey(pixels)

    def look(self, row: int, *, decode: bool) -> str:
        """The hash of the file at `row`, after a look at its header, or with `decode` at all of it.

        Raises:
            DataError: as `read`, for what is looked at.
        """
        with self._file(row) as file:
            content = hashlib.sha256()
            for block in iter(lambda: file.read(2**20), b""):
                content.update(block)
            file.seek(0)
            with _image(file) as image:
                bits = self.bits if _has_16_bits(image) else 16
                if decode:
                    to_rgb(image, bits)
        return content.hexdigest()

    @property
    def bits(self) -> int:
        """How many bits of the grey files of 16 are in use: 12 for many a scanner and camera.

        It is `bit_depth`, else what the brightest pixel of all files takes, at least 8: one number
        for the data set, since one for each image would change the contrast between them. The
        files are looked at once, when the first of 16 bits is met.
        """
        if self.bit_depth is not None:
            return self.bit_depth
        with _SCAN:
            return self._bits_in_use

    @cached_property
    def _bits_in_use(self) -> int:
        title = "looking for the bits in use"
        brightest = max(in_threads(self._brightest, range(len(self)), title))
        bits = max(8, brightest.bit_length())
        text = "%s: the brightest pixel of its grey images of 16 bits is %d, so they are scaled "
        text += "from %d bits; data.bit_depth sets another number"
        logger.info(text, self.root, brightest, bits)
        return bits

    def _brightest(self, row: int) -> int:
        """The largest value of a file of 16 bits; 0 of others, and of what cannot be read, which
        is told where it is wanted."""
        try:
            with self._file(row) as file, _image(file) as image:
                return int(np.asarray(image).max()) if _has_16_bits(image) else 0
        except DataError:
            return 0

    def grey(self) -> "FilePixels":
        return replace(self, channels=1)

    def name(self, row: int) -> str:
        return self.paths[row]

    @contextlib.contextmanager
    def _file(self, row: int) -> Iterator[BinaryIO]:
        """The file at `row`; what goes wrong while it is read names it."""
        path = self.root / self.paths[row]
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe would wait for ever
                raise ValueError("no regular file")
            with open(path, "rb") as file:
                yield file
        except _DECODE_ERRORS as error:
            expected = f"a readable image of class {self.class_names[row]!r}"
            got = "no such file" if isinstance(error, FileNotFoundError) else str(error)
            fix = "Restore the file, or take it out of the data set."
            text = describe(str(path), expected, got or type(error).__name__, fix)
            raise DataError(text) from error


def in_threads(
    look: Callable[[Item], Result], items: Sequence[Item], title: str, *, quiet: bool = False
) -> list[Result]:
    """`look` at each item, in threads and in order, with a bar where it takes a second or more."""
    found: list[Result] = []
    blocks = [items[start : start + _BLOCK] for start in range(0, len(items), _BLOCK)]
    bar = progress_bar(title, total=len(items), quiet=quiet, delay=1.0, leave=False)
    with bar, ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for part in pool.map(lambda block: [look(item) for item in block], blocks):
            found += part
            bar.update(len(part))
    return found


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`, from the CPU through pinned memory; a GPU is not waited for."""
    if tensor.is_cuda or device.type != "cuda" or tensor.numel() == 0:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_grey(images: Tensor) -> Tensor:
    """uint8 (..., 3, H, W) as (..., 1, H, W), as Pillow's mode L; what is grey keeps its values."""
    red, green, blue = (channel.int() for channel in images.unbind(-3))
    luma = (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16
    return luma.to(torch.uint8).unsqueeze(-3)


def to_8_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Integers in [0, 2^bits - 1] as uint8, the whole range as the whole range, rounded.

    Raises:
        ValueError: one is larger.
    """
    top, largest = 2**bits - 1, int(values.max(initial=0))
    if largest > top:
        raise ValueError(f"a pixel of {largest}, more than data.bit_depth {bits} holds")
    return ((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)


def to_rgb(image: Image.Image, bits: int = 16) -> Image.Image:
    """The image with three channels of 8 bits, turned as its EXIF block says; of one of 16 bits
    that many are in use."""
    deep = _has_16_bits(image)
    image.load()  # what is damaged is told here and not while it is turned
    with contextlib.suppress(*_DECODE_ERRORS):  # a damaged EXIF block says nothing
        if image.getexif().get(Tag.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
    if deep:
        image = Image.fromarray(to_8_bits(np.asarray(image), bits))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the direct conversion warns
    return image.convert("RGB")


def _image(file: BinaryIO) -> Image.Image:
    """The image in `file`, its header read and nothing decoded."""
    too_large = f"more than {MOST_PIXELS:,} pixels: scale it down"
    try:
        image = Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(too_large) from None
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(too_large)
    if image.mode.startswith(("I", "F")) and not _has_16_bits(image):
        # convert() would clip them to white without a word
        raise ValueError(f"mode {image.mode}, more than 16 bits per channel")
    return image


def _has_16_bits(image: Image.Image) -> bool:
    """Whether it is grey of 16 bits, which Pillow gives in 32 for PGM and, once, for PNG."""
    return image.mode.startswith("I;16") or image.mode == "I" and image.format in ("PNG", "PPM")

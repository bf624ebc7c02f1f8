"""Images seen through row and column numbers, so that crop, shift and flip move pixels once."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Frame:
    """A batch of images, each with the rows and columns of it that are to be seen.

    Args:
        images: uint8 (B, C, H, W).
        rows: int64 (B, h), from -margin to H + margin - 1; None with `columns`: all of the image.
        columns: int64 (B, w), likewise.
        margin: width of the black border that may be seen.
    """

    images: Tensor
    rows: Tensor | None = None
    columns: Tensor | None = None
    margin: int = 0

    def window(self, top: Tensor, left: Tensor, size: tuple[int, int], margin: int = 0) -> "Frame":
        """`size` pixels from the corners `top` and `left`, int64 (B,), each at least -margin."""
        images = self.pixels()
        height, width = (torch.arange(side, device=images.device) for side in size)
        return Frame(images, top[:, None] + height, left[:, None] + width, margin)

    def mirrored(self, which: Tensor) -> "Frame":
        """Left to right, where `which` (B,) says so."""
        columns = self.columns
        if columns is None or self.rows is None:
            zeros = torch.zeros_like(which, dtype=torch.int64)
            whole = (self.images.shape[-2], self.images.shape[-1])
            return self.window(zeros, zeros, whole).mirrored(which)
        return replace(self, columns=torch.where(which[:, None], columns.flip(1), columns))

    def pixels(self) -> Tensor:
        """What is seen, uint8 (B, C, h, w); the images themselves where that is all of them."""
        if self.rows is None or self.columns is None:
            return self.images
        border, count = self.margin, len(self.images)
        images = functional.pad(self.images, [border] * 4) if border else self.images
        channels, width = images.shape[1], images.shape[-1]
        # one index a pixel, shared by the channels
        places = (self.rows + border)[:, :, None] * width + (self.columns + border)[:, None, :]
        index = places.view(count, 1, -1).expand(-1, channels, -1)
        seen = images.reshape(count, channels, -1).gather(2, index)
        return seen.view(count, channels, *places.shape[1:])

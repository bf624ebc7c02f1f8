"""A network on which APGD has to work: steps overshoot, and halving them pays; and a wrapper whose
logits are the same in any batch."""

import torch
from torch import Tensor, nn


class Wavy(nn.Module):
    """Convolution, sines and a linear head, (B, 3, 8, 8) -> (B, classes), fixed random weights.

    It keeps every batch that it is given in `seen`, in order.
    """

    def __init__(self, classes: int = 6, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 6, 3, stride=2, dtype=dtype)
            self.head = nn.Linear(54, classes, dtype=dtype)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.head(torch.sin(4 * self.conv(x)).flatten(1))


def pictures(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(count, 3, 8, 8), uniform, the same numbers in every dtype."""
    source = torch.Generator().manual_seed(5)
    return torch.rand(count, 3, 8, 8, generator=source, dtype=torch.float32).to(dtype)


def predicted(model: nn.Module, x: Tensor) -> Tensor:
    """The classes that the model sees."""
    with torch.no_grad():
        return model(x).argmax(1)


class OneByOne(nn.Module):
    """A model whose logits for an image are the same to the last bit in whatever batch it comes:
    it runs one image after another, and notes how many it was given, in `sizes`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return torch.cat([self.inner(image) for image in x.split(1)])

"""torchattacks as an oracle: the same model, images and seed, in fp32 or fp64, on the CPU."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

EPS = {"linf": 0.05, "l2": 0.5, "l1": 5.0}
PEER_NORM = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def torchattacks() -> Any:
    """The library, or a skip: it is no dependency of this package."""
    return pytest.importorskip("torchattacks", reason="torchattacks, the oracle, is not installed")


class Net(nn.Module):
    """A small fixed conv net, (B, 3, H, W) -> (B, 10), smooth, in fp64 by default."""

    def __init__(self, seed: int = 0, gain: float = 6.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Conv2d(3, 8, 3, padding=1, stride=2)
            self.second = nn.Conv2d(8, 16, 3, padding=1, stride=2)
            self.head = nn.Linear(64, 10)
        self.gain = gain
        self.eval().double()

    def forward(self, x: Tensor) -> Tensor:
        maps = nn.functional.softplus(self.first(x - 0.5) * self.gain)
        maps = nn.functional.softplus(self.second(maps))
        return self.head(nn.functional.adaptive_avg_pool2d(maps, 2).flatten(1)) * self.gain


def batch(count: int, model: nn.Module, size: int = 15, seed: int = 1) -> tuple[Tensor, Tensor]:
    """fp64 images and labels; the model is right on all but every seventh."""
    x = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)).double()
    with torch.no_grad():
        logits = model(x.to(next(model.parameters()).dtype))
    y = logits.argmax(1)
    y[::7] = (y[::7] + 1) % 10
    return x, y


@contextlib.contextmanager
def peer_in(dtype: torch.dtype) -> Iterator[None]:
    """Run the peer in `dtype` and give the process back as it was.

    It makes new tensors of the default dtype, converts images by `.float()`, and reseeds torch's
    global generator. Numbers are drawn in fp32, as they are in normal use: an fp64 `torch.rand`
    would give others.
    """
    default, to_float, rand, randn = (
        torch.get_default_dtype(),
        Tensor.float,
        torch.rand,
        torch.randn,
    )
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        try:
            torch.set_default_dtype(dtype)
            patch.setattr(Tensor, "float", lambda tensor: tensor.to(dtype))
            for name, draw in (("rand", rand), ("randn", randn)):
                patch.setattr(torch, name, _fp32(draw))
            yield
        finally:
            torch.set_default_dtype(default)
    assert Tensor.float is to_float


def _fp32(draw: Any) -> Any:
    return lambda *shape: draw(*shape, dtype=torch.float32).to(torch.get_default_dtype())


def margins(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Largest other logit minus that of y."""
    with torch.no_grad():
        logits = model(x)
    own = logits.gather(1, y[:, None])[:, 0]
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - own

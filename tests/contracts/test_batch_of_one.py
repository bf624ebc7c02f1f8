"""The gradient of an image does not depend on the images beside it, in networks of every family."""

from typing import Any

import pytest
import timm
import torch
from tiny_models import SIZES, SMALL, images, tiny
from torch import Tensor, nn

from roli_fast.engine import Engine, InputGradient
from roli_fast.engine.batch_norm import mended

Y = torch.tensor([0, 4, 2])
TOKENS = {"img_size": 64}
FOUR = {"embed_dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
FAMILIES: dict[str, tuple[int, dict[str, Any]]] = {
    **{name: (SIZES[name], options) for name, options in SMALL.items()},
    "xcit_nano_12_p16_224": (64, {**TOKENS, "depth": 2, "embed_dim": 16, "num_heads": 2}),
    "levit_128s": (
        64,
        {**TOKENS, "embed_dim": (16, 16), "depth": (1, 1), "num_heads": (2, 2), "key_dim": 4},
    ),
    "tiny_vit_5m_224": (64, FOUR),
    "pvt_v2_b0": (64, FOUR),
    "edgenext_xx_small": (64, {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16)}),
}
"""timm architecture -> image size, and options that make it tiny."""


class Stem(nn.Module):
    """Maps, a norm, and tokens with the batch in front or behind: (B, 3, H, W) -> (B, 5)."""

    def __init__(self, norm: nn.Module, *, behind: bool = False) -> None:
        super().__init__()
        kind, self.behind = (nn.Conv3d if isinstance(norm, nn.BatchNorm3d) else nn.Conv2d), behind
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem, self.head = nn.Sequential(kind(3, 8, 4, 4), norm), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.stem(x).flatten(2)
        if self.behind:
            return self.head(torch.tanh(maps.permute(2, 0, 1))).mean(0)
        return self.head(torch.tanh(maps.transpose(1, 2))).mean(1)


class Rows(Stem):
    """Its maps are one pixel wide, and lie with the channels behind."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.stem(x[..., :4]).permute(0, 2, 3, 1))).mean((1, 2))


def drawn(model: nn.Module) -> Any:
    """No weight at zero, and batch norms that differ from an identity."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.05)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2, generator=draw)
    return model


def rows(model: nn.Module, x: Tensor, **options: Any) -> float:
    """How far gradients of images alone are from those of the batch, in parts of these."""
    with InputGradient(Engine(**options).bind(model)) as engine:
        whole = engine(x, Y)[0]
        alone = torch.cat([engine(x[i : i + 1], Y[i : i + 1])[0] for i in range(len(x))])
    return ((alone - whole).norm() / whole.norm()).item()


@pytest.mark.parametrize("name", FAMILIES)
def test_networks(name: str) -> None:
    size, options = FAMILIES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = tiny(name) if name in SMALL else timm.create_model(name, num_classes=5, **options)
    model = drawn(network).double()
    assert rows(model, images(3, 3, size, size).double()) < 1e-10


@pytest.mark.parametrize(
    "model",
    [
        Stem(nn.BatchNorm2d(8)),
        Stem(nn.BatchNorm3d(8)),
        Stem(nn.InstanceNorm2d(8, affine=True)),
        Stem(nn.InstanceNorm2d(8), behind=True),
        Rows(nn.BatchNorm2d(8)),
    ],
    ids=["2d", "3d", "instance", "instance, batch behind", "one pixel wide"],
)
def test_norms(model: nn.Module) -> None:
    """Against rounding that does not see how a tensor lies: fp64, differences by hand."""
    model = drawn(model).double().eval()
    x = images(3, 3, *[8] * (3 if "3d" in str(model) else 2)).double()
    assert rows(model, x) < 1e-12
    for count in (1, 3):
        with InputGradient(model) as engine:
            grad = engine(x[:count], Y[:count])[0]
            step = torch.randn(x[:count].shape, generator=torch.Generator().manual_seed(1)).double()
            up, down = (
                engine.evaluate(x[:count] + 1e-6 * s * step, Y[:count])[0].sum() for s in (1, -1)
            )
        assert ((up - down) / 2e-6).item() == pytest.approx((grad * step).sum().item(), rel=1e-6)


@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"fold": True}, {"batch_size": 2}])
def test_passes_of_every_kind(options: dict[str, Any]) -> None:
    near = 0.1 if "dtype" in options else 1e-5
    assert rows(drawn(Stem(nn.BatchNorm2d(8))), images(3, 3, 16, 16), **options) < near


def test_weights_of_a_training_step() -> None:
    """In train mode, where the batch matters: against maps that are made to lie in order."""
    model = drawn(Stem(nn.BatchNorm2d(8))).double().train()
    model.head.requires_grad_(False)
    x, found = images(1, 3, 16, 16).double(), []
    for ordered in (True, False):
        maps = model.stem(x)
        if ordered:
            maps.register_hook(lambda grad: grad.clone(memory_format=torch.contiguous_format))
        logits = model.head(torch.tanh(maps.flatten(2).transpose(1, 2))).mean(1)
        loss = logits.square().sum() if ordered else mended(logits.square().sum())
        found.append(torch.autograd.grad(loss, model.stem[0].weight)[0])
    assert torch.allclose(found[1], found[0], rtol=1e-10)

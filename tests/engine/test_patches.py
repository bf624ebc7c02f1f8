"""Patch embeddings as a product: what the convolution gives, in its layout."""

from typing import Any

import pytest
import torch
from tiny_models import images, tiny, untouched
from torch import Tensor, nn

from roli_fast.engine import Engine, InputGradient
from roli_fast.engine.patches import by_patches, cuts_patches

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def both(layer: nn.Conv2d, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Maps and input gradient of the convolution and of the product."""
    found = []
    for forward in (layer, lambda x: by_patches(layer, x)):
        leaf = x.clone().requires_grad_()
        maps = forward(leaf)
        weight = torch.linspace(-1, 1, maps.numel(), dtype=maps.dtype).view_as(maps)
        found.append((maps, torch.autograd.grad((maps * weight).sum(), leaf)[0]))
    return found


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kernel", [4, (4, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_convolution(layout: Any, kernel: Any, bias: bool) -> None:
    """Also where the last rows and columns fill no patch."""
    layer = nn.Conv2d(3, 6, kernel, kernel, bias=bias).double().to(memory_format=layout)
    x = images(2, 3, 17, 26).double().contiguous(memory_format=layout)
    (maps, grad), (ours, our_grad) = both(layer, x)
    assert torch.allclose(ours, maps, rtol=0, atol=1e-14) and ours.stride() == maps.stride()
    assert torch.allclose(our_grad, grad, rtol=0, atol=1e-14)
    assert (our_grad[:, :, 16:] == 0).all() and (our_grad[..., 24:] == 0).all()


def test_strided_images_and_one_channel() -> None:
    layer = nn.Conv2d(1, 5, 4, 4).double()
    for x in (images(3, 1, 8, 8), images(3, 2, 8, 8)[:, 1:], images(3, 1, 8, 16)[..., ::2]):
        (maps, grad), (ours, our_grad) = both(layer, x.double())
        assert torch.allclose(ours, maps, rtol=0, atol=1e-14)
        assert torch.allclose(our_grad, grad, rtol=0, atol=1e-14)


def test_what_cuts_patches() -> None:
    assert cuts_patches(nn.Conv2d(3, 5, 4, 4)) and cuts_patches(nn.Conv2d(3, 5, 4, 4, "valid"))
    other: list[nn.Module] = [
        nn.Conv2d(3, 5, 4, 2),
        nn.Conv2d(3, 5, 4, 4, padding=1),
        nn.Conv2d(3, 3, 4, 4, groups=3),
        nn.Conv2d(3, 5, 4, 4, dilation=2),
        nn.Conv2d(3, 5, 1),
        nn.Conv2d(96, 192, 4, 4),  # feature maps
        nn.Conv3d(3, 5, 4, 4),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 5, 4, 4)),
    ]
    assert not any(map(cuts_patches, other))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_an_engine(dtype: torch.dtype) -> None:
    model, x, y = tiny(), images(4, 3, 8, 8), torch.tensor([0, 3, 1, 4])
    layer = model.backbone.patch_embed.proj
    seen: list[str] = []
    layer.register_forward_hook(lambda *_: seen.append("called"))
    with InputGradient(Engine(dtype=dtype).bind(model)) as engine:
        truth = engine(x, y)
    with untouched(model), InputGradient(Engine(dtype=dtype, fold=True).bind(model)) as engine:
        assert "forward" in vars(layer)
        found = engine(x, y)
    assert "forward" not in vars(layer) and seen == ["called"] * 2
    close = 1e-5 if dtype == torch.float32 else 0.02
    for ours, theirs in zip(found, truth, strict=True):
        assert (ours - theirs).norm() <= close * theirs.norm()


def test_a_view_of_contiguous_maps_still_works() -> None:
    """In bf16 too, where maps are in channels_last until a model asks for such a view."""

    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Conv2d(3, 5, 4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.proj(x).view(len(x), 5, -1).mean(2)

    for dtype in (torch.float32, torch.bfloat16):
        with InputGradient(Engine(dtype=dtype, fold=True).bind(Viewing())) as engine:
            assert engine(images(4, 3, 8, 8), torch.zeros(4, dtype=torch.long))[2].shape == (4, 5)


def test_under_the_callers_autocast() -> None:
    layer, x = nn.Conv2d(3, 5, 4, 4), images(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        (maps, _), (ours, _) = both(layer, x)
    assert ours.dtype == maps.dtype == torch.bfloat16
    assert torch.allclose(ours, maps, rtol=0, atol=2**-7)

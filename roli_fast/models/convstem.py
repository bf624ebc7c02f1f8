"""ConvNeXt and ViT with a stem of convolutions in the place of their patches, registered so that
timm builds them by name.

Singh, Croce & Hein, "Revisiting Adversarial Training for ImageNet", NeurIPS 2023,
arXiv:2303.01870. Tensors have the names of the published checkpoints (stem.stem.0,
patch_embed.proj.stem.0). All but the small ViT take images in [0, 1] as they are.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import timm
from timm.layers import LayerNorm2d  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn

from roli_fast import zoo
from roli_fast.models.preact import register


class ConvStem(nn.Module):
    """3x3 convolutions, each with a layer norm over the channels and GELU behind it.

    Args:
        in_chans: channels of the images.
        widths: channels behind each convolution.
        strides: of each convolution.
        out: channels of a 1x1 convolution at the end; None ends with the last GELU.
    """

    def __init__(
        self, in_chans: int, widths: Sequence[int], strides: Sequence[int], out: int | None = None
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, stride in zip(widths, strides, strict=True):
            convolution = nn.Conv2d(in_chans, width, 3, stride, padding=1)
            layers += [convolution, LayerNorm2d(width), nn.GELU()]
            in_chans = width
        if out is not None:
            layers.append(nn.Conv2d(in_chans, out, 1))
        self.stem = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, channels, H / s, W / s), s the product of the strides."""
        return self.stem(x)


def _convnext(base: str, widths: Sequence[int], strides: Sequence[int], **options: Any) -> Any:
    model: Any = timm.create_model(base, **options)
    model.stem = ConvStem(options.get("in_chans", 3), widths, strides)
    return _described(model, "stem.stem.0", "none")


def _vit(base: str, normalization: str, **options: Any) -> Any:
    model: Any = timm.create_model(base, **options)
    widths = (48, 96, 192, 384)
    stem = ConvStem(options.get("in_chans", 3), widths, (2, 2, 2, 2), out=model.embed_dim)
    model.patch_embed.proj = stem
    return _described(model, "patch_embed.proj.stem.0", normalization)


def _described(model: Any, first: str, normalization: str) -> Any:
    mean, std = zoo.NORMALIZATIONS[normalization]
    model.pretrained_cfg = model.pretrained_cfg | {"first_conv": first, "mean": mean, "std": std}
    return model


for _size, _widths, _strides in (
    ("tiny", (48, 96), (2, 2)),
    ("small", (48, 96), (2, 2)),
    ("base", (64, 96, 128), (2, 2, 1)),
    ("large", (96, 144, 192), (2, 2, 1)),
):
    _build = partial(_convnext, f"convnext_{_size}", _widths, _strides)
    register(f"convnext_{_size}_convstem", f"ConvNeXt-{_size[0].upper()} + ConvStem.", _build)
register(
    "vit_small_convstem", "ViT-S + ConvStem.", partial(_vit, "deit_small_patch16_224", "imagenet")
)
register("vit_base_convstem", "ViT-B + ConvStem.", partial(_vit, "vit_base_patch16_224", "none"))

"""Patch embeddings as one matrix product, on the CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional

_SMALLEST, _CHANNELS = 4, 4
"""Patches of images. Windows of 2 x 2, which cut feature maps, are faster as a convolution."""


def cuts_patches(layer: nn.Module) -> bool:
    """Whether this is a convolution whose windows tile images, as a patch embedding's do."""
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == layer.stride
        and min(layer.kernel_size) >= _SMALLEST
        and layer.in_channels <= _CHANNELS
        and layer.padding in ((0, 0), "valid")
        and layer.dilation == (1, 1)
        and layer.groups == 1
    )


def by_patches(layer: nn.Conv2d, input: Tensor) -> Tensor:
    """What the layer's `forward` returns, up to the order of a sum, in the same memory layout.

    The backward of torch 2.11's convolution takes three to six times as long as the product for
    patches of 16 x 16 on the CPU. Other devices keep their convolution.
    """
    x, (p, q) = input, layer.kernel_size
    if x.device.type != "cpu" or x.ndim != 4:
        return nn.Conv2d.forward(layer, x)
    weight = layer.weight
    if torch.is_autocast_enabled("cpu"):
        x = x.to(weight.dtype)  # before the copy, which is shorter then
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    rows, columns = x.shape[2] // p, x.shape[3] // q
    x = x[:, :, : rows * p, : columns * q]
    if last:
        patches = x.permute(0, 2, 3, 1).unflatten(2, (columns, q)).unflatten(1, (rows, p))
        patches, weight = patches.transpose(2, 3), weight.permute(0, 2, 3, 1)
    else:
        patches = x.unflatten(3, (columns, q)).unflatten(2, (rows, p)).permute(0, 2, 4, 1, 3, 5)
    maps = functional.linear(patches.flatten(3), weight.flatten(1), layer.bias).permute(0, 3, 1, 2)
    return maps if last else maps.contiguous()

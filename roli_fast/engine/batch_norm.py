"""Batch norm's backward on the CPU, right where a map has an axis of length 1: a batch of one."""

from typing import Any

import torch
from torch import Tensor


def mended(out: Tensor) -> Tensor:
    """`out`, whose backward passes give batch norm gradients in an order that it reads rightly.

    On the CPU (torch 2.11) it tells channels_last from contiguous by the strides of axes of length
    1 too. A gradient from tokens, say, has others there than the maps, which is read in the wrong
    order: a wrong gradient of the input and of all weights before it. From two images on no such
    axis is left, but in maps of one row or column, and in instance norm, which folds the batch
    into the channels. Under `vmap` there is no order that helps.
    """
    for node in ambiguous_norms(out):
        node.register_prehook(_in_channels_last)
    return out


def ambiguous_norms(out: object) -> list[Any]:
    """The nodes of the graph behind `out` for batch norms of such maps."""
    seen, found = set(), []
    nodes = [out.grad_fn] if isinstance(out, Tensor) and out.is_cpu else []
    while nodes:
        node: Any = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes.extend(before for before, _ in node.next_functions)
        if "BatchNorm" in node.name():
            shape = node._input_metadata[0].shape
            if len(shape) > 3 and 1 in (shape[0], *shape[2:]):
                found.append(node)
    return found


def _in_channels_last(grads: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """All of it copied: `contiguous` takes what lies in either order for both."""
    grad, *others = grads
    order = torch.channels_last if grad.ndim == 4 else torch.channels_last_3d
    return torch.empty_like(grad, memory_format=order).copy_(grad), *others

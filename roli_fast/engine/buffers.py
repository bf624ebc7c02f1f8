"""Second tensors that stand for a module's own during an attack: merged, folded, converted weights.

They lie where they did the last time: no attack allocates, and recorded passes read them there.
"""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_Form = tuple[str, torch.dtype, torch.memory_format]
_buffers: "WeakKeyDictionary[nn.Module, dict[_Form, Tensor]]" = WeakKeyDictionary()
"""Kept as long as the module, and not in it: its copies and state dicts know nothing of them."""


def buffer(
    module: nn.Module,
    name: str,
    like: Tensor,
    dtype: torch.dtype,
    layout: torch.memory_format = torch.preserve_format,
) -> Tensor:
    """A tensor of the shape of `like`, a module's own for this name; its numbers are old ones."""
    held, form = _buffers.setdefault(module, {}), (name, dtype, layout)
    found = held.get(form)
    if found is None or (found.shape, found.device) != (like.shape, like.device):
        with torch.inference_mode(False):
            found = held[form] = torch.empty_like(like, dtype=dtype, memory_format=layout)
    return found


def forget_buffers(model: nn.Module) -> None:
    """Free those of all modules in a model."""
    for module in model.modules():
        _buffers.pop(module, None)

"""Low-rank layers take part in an attack as one matrix: their weights do not change meanwhile."""

from collections.abc import Iterable
from typing import NamedTuple, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from roli_fast import ops


class MergeRequest(NamedTuple):
    """What a layer wants merged; the arguments of `ops.lora_merge_` for one layer."""

    weight: Tensor
    a: Tensor
    b: Tensor
    scale: float
    rows: tuple[tuple[int, int], ...] | None


@runtime_checkable
class Mergeable(Protocol):
    """A module that can compute with its weight and update in one matrix.

    While `merged` is a tensor, shaped as the request's weight, `forward` uses it instead of weight
    and update; None is the normal state. Neither is part of the module's state dict.
    """

    merged: Tensor | None

    def merge_request(self) -> MergeRequest | None:
        """What to merge, now, in eval mode; None if this layer cannot be merged as it is."""
        ...


buffers: "WeakKeyDictionary[nn.Module, Tensor]" = WeakKeyDictionary()
"""One buffer a module, kept as long as the module, so that no batch allocates. Kept here and not in
the module, whose copies and state dicts know nothing of it."""


class Merging:
    """Fills and empties the `merged` of every `Mergeable` module in a model."""

    def __init__(self) -> None:
        self._filled: list[Mergeable] = []

    def fill(self, modules: Iterable[nn.Module], dtype: torch.dtype | None = None) -> None:
        """Merge whatever asks for it, by one `ops.lora_merge_`.

        A module that an outer engine has merged is left alone. Buffers have `dtype` where it is
        given, and under autocast autocast's, which spares a conversion at every forward.
        """
        asked = []
        for module in modules:
            # of the type alone: nn.Module answers for a name that it lacks slowly
            if hasattr(type(module), "merge_request") and isinstance(module, Mergeable):
                request = module.merge_request() if module.merged is None else None
                if request is not None:
                    asked.append((module, MergeRequest(*request)))
        if not asked:
            return
        weights, a, b, scales, rows = map(list, zip(*(r for _, r in asked), strict=True))
        with torch.inference_mode(False), torch.no_grad():
            targets = [_buffer(module, request.weight, dtype) for module, request in asked]
            ops.lora_merge_(targets, weights, a, b, scales=scales, rows=rows)
        for (module, _), target in zip(asked, targets, strict=True):
            module.merged = target
            self._filled.append(module)

    def clear(self) -> None:
        """Set `merged` back to None where `fill` set it."""
        for module in self._filled:
            module.merged = None
        self._filled = []


def _buffer(module: nn.Module, weight: Tensor, low: torch.dtype | None) -> Tensor:
    """The module's buffer from the last time, if it still fits."""
    dtype, kind = weight.dtype, weight.device.type
    if low is None and torch.is_autocast_enabled(kind):
        low = torch.get_autocast_dtype(kind)
    if low is not None and dtype == torch.float32:
        dtype = low
    found = buffers.get(module)
    same = found is not None and (found.shape, found.dtype) == (weight.shape, dtype)
    if found is None or not same or found.device != weight.device:
        found = buffers[module] = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    return found

"""Low-rank layers take part in an attack as one matrix: their weights do not change meanwhile."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from roli_fast import ops
from roli_fast.engine.buffers import buffer


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


def merge(modules: Iterable[nn.Module], dtype: torch.dtype | None = None) -> Callable[[], None]:
    """Fill `merged` of whatever asks for it, by one `ops.lora_merge_`; returns what empties it.

    What an outer engine has merged is left alone. Second matrices of fp32 weights have `dtype`
    where it is given, and under autocast autocast's, which spares a conversion at every forward.
    """
    asked: list[tuple[Any, MergeRequest]] = []
    for module in modules:
        # of the type alone: nn.Module answers for a name that it lacks slowly
        if hasattr(type(module), "merge_request") and isinstance(module, Mergeable):
            request = module.merge_request() if module.merged is None else None
            if request is not None:
                asked.append((module, MergeRequest(*request)))
    if not asked:
        return lambda: None
    weights, a, b, scales, rows = map(list, zip(*(r for _, r in asked), strict=True))
    with torch.inference_mode(False), torch.no_grad():
        targets = [
            buffer(m, "merged", r.weight, _dtype(r.weight, dtype), torch.contiguous_format)
            for m, r in asked
        ]
        ops.lora_merge_(targets, weights, a, b, scales=scales, rows=rows)
    for (module, _), target in zip(asked, targets, strict=True):
        module.merged = target

    def clear() -> None:
        for module, _ in asked:
            module.merged = None

    return clear


def _dtype(weight: Tensor, low: torch.dtype | None) -> torch.dtype:
    kind = weight.device.type
    if low is None and torch.is_autocast_enabled(kind):
        low = torch.get_autocast_dtype(kind)
    return low if low is not None and weight.dtype == torch.float32 else weight.dtype

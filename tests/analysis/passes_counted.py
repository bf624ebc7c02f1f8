"""Passes of a model, counted by hooks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class Count:
    """Samples that went forward through a model, back to its input, and to any weight."""

    forwards = input_backwards = weight_backwards = 0


@contextmanager
def counted(model: nn.Module) -> Iterator[Count]:
    """Counts what goes through `model` itself; one parameter's gradient tells of weights."""
    count = Count()

    def forward(_module: nn.Module, args: tuple[Any, ...]) -> None:
        (x,) = args
        size = len(x)
        count.forwards += size
        if x.requires_grad:
            x.register_hook(lambda _grad: backward(size))

    def backward(size: int) -> None:
        count.input_backwards += size

    def weight(_grad: Tensor) -> None:
        count.weight_backwards += 1

    handles: list[Any] = [model.register_forward_pre_hook(forward)]
    handles += [p.register_hook(weight) for p in model.parameters() if p.requires_grad]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()

"""A model and its engine: how a search passes images through it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from roli_fast.engine.graph import records
from roli_fast.engine.low_precision import EnginePasses

if TYPE_CHECKING:
    from roli_fast.engine.engine import Engine

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class SearchModel:
    """Made by `Engine.bind`; itself a model, (B, ...) images -> (B, C) logits.

    The model inside is what an attack freezes, puts into eval mode and gives back. It is never
    changed: passes in another dtype or layout have their own copies of its weights.

    Args:
        model: images (B, ...) -> logits (B, C), an `nn.Module` or any differentiable callable.
        engine: how passes are made.
    """

    model: Model
    engine: "Engine"

    @property
    def module(self) -> nn.Module | None:
        """The model inside where it is a module: what has modes, weights and buffers."""
        return self.model if isinstance(self.model, nn.Module) else None

    def batches(self, count: int) -> Iterator[slice]:
        """How a pass over `count` images is split; one empty batch for none."""
        size = self.engine.batch_size or max(count, 1)
        for start in range(0, max(count, 1), size):
            yield slice(start, min(start + size, count))

    def passes(self) -> Model:
        """What runs one batch; weights are converted here, once for as long as it is used."""
        engine = self.engine
        form = engine.short_dtype is not None or engine.rows_last or engine.attention == "products"
        if not form and not engine.compile:
            return self.model
        return EnginePasses(
            self.model,
            engine.short_dtype,
            rows_last=engine.rows_last,
            attention=engine.attention,
            compiled=engine.compile,
            keep=engine.cuda_graph is not False and records(self.model),
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (B, C), with a graph where autograd asks for one."""
        run, parts = self.passes(), list(self.batches(len(x)))
        return run(x) if len(parts) == 1 else torch.cat([run(x[part]) for part in parts])

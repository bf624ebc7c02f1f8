"""A model and its engine: how a search passes images through it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from roli_fast.engine.batch_norm import mended
from roli_fast.engine.graph import records
from roli_fast.engine.low_precision import EnginePasses
from roli_fast.errors import ArgumentError, describe
from roli_fast.threat import values_are_known

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
        found = [logits_of(run, x if len(parts) == 1 else x[part]) for part in parts]
        return mended(found[0] if len(parts) == 1 else torch.cat(found))


def logits_of(run: Model, x: Tensor, *, known: bool = False) -> Tensor:
    """`run(x)` of a model that leaves its input as it is.

    Args:
        run: what runs one batch.
        x: images (B, ...).
        known: the model was seen to do so: only the tensor's version is looked at.

    Raises:
        ArgumentError: it wrote into `x`, which has its old values again unless `known`.
    """
    copy = None if known else x.detach().clone()
    version = None if x.is_inference() else x._version
    try:
        found = run(x)
    except RuntimeError as error:
        if _IN_PLACE not in str(error):
            raise
        raise _changed(run) from error
    changed = version is not None and x._version != version
    looks = x.is_cpu and not values_are_known()  # on a GPU, and in training, it would wait
    if copy is not None and not changed and looks:  # by x.data, of which no version tells
        changed = bool(((x.detach() != copy) & (copy == copy)).any())
    if not changed:
        return found
    if copy is not None:
        x.data.copy_(copy)
    raise _changed(run)


_IN_PLACE = "leaf Variable that requires grad"
"""What torch says of an operation in place on images whose gradient is taken."""


def _changed(run: Model) -> ArgumentError:
    name = type(getattr(run, "model", run)).__name__
    fix = "Write x = (x - mean) / std in its forward, not x.sub_(mean).div_(std)."
    expected = "a model that leaves its input as it is"
    return ArgumentError(describe("model", expected, f"{name}, which changes it in place", fix))

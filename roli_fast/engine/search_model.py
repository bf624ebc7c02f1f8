"""A model, and how a search passes images through it: in micro-batches, in a short dtype."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from roli_fast.engine.short_passes import ShortPasses
from roli_fast.errors import ArgumentError, ArgumentTypeError, describe

Model = Callable[[Tensor], Tensor]

SHORT = (torch.bfloat16, torch.float16)
"""The dtypes that passes may be made in besides the model's own."""


@dataclass(frozen=True, eq=False)
class SearchModel:
    """Taken wherever an attack takes a model; itself one, (B, ...) images -> (B, C) logits.

    The model inside is what an attack freezes, puts into eval mode and gives back. It is never
    changed: passes in another dtype have their own copies of its weights.

    Args:
        model: images (B, ...) -> logits (B, C), an `nn.Module` or any differentiable callable.
        batch_size: every pass is split into batches of this many images, and what is left: so a
            search may be given a pool of many images, and those that are still in it fill the
            device as long as there are so many. None makes one batch of all.
        dtype: torch.bfloat16 or torch.float16 (by autocast, with weights converted once);
            images, logits, losses and gradients stay in fp32. None and torch.float32 leave the
            model as it is. What a search finds holds for the plain model only once it has looked.
    """

    model: Model
    batch_size: int | None = field(default=None, kw_only=True)
    dtype: torch.dtype | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.model, SearchModel):
            fix = "Use dataclasses.replace to change how it passes images."
            raise ArgumentTypeError(describe("model", "a model", "a SearchModel", fix))
        if not callable(self.model):
            got = type(self.model).__name__
            raise ArgumentTypeError(describe("model", "a callable from images to logits", got))
        size = self.batch_size
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise ArgumentError(describe("batch_size", "an integer >= 1 or None", repr(size)))
        if self.dtype not in (None, torch.float32, *SHORT):
            expected = "torch.bfloat16, torch.float16 or None"
            raise ArgumentError(describe("dtype", expected, repr(self.dtype)))
        if self.dtype in SHORT and isinstance(self.model, torch.jit.ScriptModule):
            fix = "Its weights cannot be replaced for a call: give the nn.Module it was made of."
            raise ArgumentTypeError(describe("model", "a plain nn.Module", "a ScriptModule", fix))

    @staticmethod
    def of(model: Model) -> "SearchModel":
        """`model` if it is one already, otherwise one that passes all images at once as it is."""
        return model if isinstance(model, SearchModel) else SearchModel(model)

    @property
    def module(self) -> nn.Module | None:
        """The model inside where it is a module: what has modes, weights and buffers."""
        return self.model if isinstance(self.model, nn.Module) else None

    @property
    def short_dtype(self) -> torch.dtype | None:
        """The dtype of its passes where that is not the model's own."""
        return self.dtype if self.dtype in SHORT else None

    def batches(self, count: int) -> Iterator[slice]:
        """How a pass over `count` images is split; one empty batch for none."""
        size = self.batch_size or max(count, 1)
        for start in range(0, max(count, 1), size):
            yield slice(start, min(start + size, count))

    def passes(self) -> Model:
        """What runs one batch; weights are converted here, once for as long as it is used."""
        short = self.short_dtype
        return self.model if short is None else ShortPasses(self.model, short)

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (B, C), with a graph where autograd asks for one."""
        run, parts = self.passes(), list(self.batches(len(x)))
        return run(x) if len(parts) == 1 else torch.cat([run(x[part]) for part in parts])

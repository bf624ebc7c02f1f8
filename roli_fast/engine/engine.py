"""How model passes are made: one value, taken by attacks, stages and evaluations."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from roli_fast.engine import graph
from roli_fast.engine.batch_norm import mended
from roli_fast.engine.buffers import forget_buffers
from roli_fast.engine.compiled import forget_compiled, logits_in
from roli_fast.engine.low_precision import NO_VIEW, EnginePasses, surroundings
from roli_fast.engine.tf32 import set_tf32
from roli_fast.errors import ArgumentError, ArgumentTypeError, check_choice, describe, is_number
from roli_fast.threat import values_are_known

Model = Callable[[Tensor], Tensor]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What a configuration writes -> the dtype."""


@dataclass(frozen=True)
class Engine:
    """How a model's passes are made. The default makes them as the model is, all images at once.

    >>> attack(model, x, y, engine=Engine(dtype=torch.bfloat16, batch_size=256))
    >>> with InputGradient(Engine(merge=False).bind(model)) as gradient: ...

    Nothing here changes the model: what a pass needs in another form is a second tensor.

    Args:
        dtype: torch.bfloat16 or torch.float16, or their names: passes by autocast, with weights
            converted once; images, logits, losses and gradients stay in fp32. float32 leaves the
            model in its own. What a search finds in low precision holds for the plain model only
            once that has looked.
        batch_size: every pass is split into batches of this many images, and what is left: so a
            search may be given a pool of many images, and those that are still in it fill the
            device as long as there are so many. null makes one batch of all.
        merge: low-rank layers compute with weight and update in one matrix, merged once an attack.
        attention: "fused" is torch's kernel, "products" softmax(q k^T) v in three operations.
            "auto" takes the products for gradients in low precision on the CPU, where they are
            quicker, and else the fused kernel.
        channels_last: images and convolutions' weights in channels_last; "auto" in low precision.
            A model that asks for a view which only contiguous maps have gets these instead.
        fold: during an attack batch normalisation is part of the convolution before it, where that
            is exact but for rounding, as a model's first image, run both ways, must show;
            on the CPU patch embeddings are a matrix product. "auto" in low precision, where last
            bits are not expected anyway.
        cuda_graph: on a GPU a pass, forward and input-backward, is recorded once a shape and
            replayed, in every attack, with weights read anew: the same kernels, without the time to
            launch them one by one. "auto" records what comes a fifth time and holds at most a
            quarter of the device's memory, True records at once. What cannot be recorded runs as it
            is, and the log says why. In a replay a model's Python code does not run: hooks,
            counters.
        compile: passes through torch.compile, compiled once a model and shape, minutes where it
            must; a model that cannot be compiled runs as it is, and the log says why. "auto" does
            so on a GPU, measures a pass either way once a model, and keeps the quicker.
        tf32: whether fp32 products and convolutions on a GPU are rounded to TF32, in passes and in
            the updates of a stage; null leaves torch's own setting.
    """

    dtype: torch.dtype = torch.float32
    batch_size: int | None = None
    merge: bool = True
    attention: Literal["auto", "fused", "products"] = "auto"
    channels_last: Literal["auto"] | bool = "auto"
    fold: Literal["auto"] | bool = "auto"
    cuda_graph: Literal["auto"] | bool = "auto"
    compile: Literal["auto"] | bool = False
    tf32: bool | None = None

    def __post_init__(self) -> None:
        if isinstance(self.dtype, str):  # of a caller without a type checker
            object.__setattr__(self, "dtype", DTYPES.get(self.dtype, self.dtype))
        if self.dtype not in DTYPES.values():
            expected = "torch.float32, torch.bfloat16 or torch.float16, or the name of one"
            raise ArgumentError(describe("dtype", expected, repr(self.dtype)))
        size = self.batch_size
        if size is not None and not (is_number(size, Integral) and size >= 1):
            raise ArgumentError(describe("batch_size", "an integer >= 1 or None", repr(size)))
        check_choice("attention", self.attention, ("auto", "fused", "products"))
        for name in ("channels_last", "fold", "cuda_graph", "compile"):
            check_choice(name, getattr(self, name), ("auto", True, False))
        check_choice("merge", self.merge, (True, False))
        check_choice("tf32", self.tf32, (True, False, None))

    @property
    def low_precision_dtype(self) -> torch.dtype | None:
        """The dtype of the passes where that is not the model's own."""
        return None if self.dtype == torch.float32 else self.dtype

    @property
    def in_channels_last(self) -> bool:
        """Whether maps lie in channels_last."""
        low = self.low_precision_dtype is not None
        return low if self.channels_last == "auto" else self.channels_last

    @property
    def folds(self) -> bool:
        """Whether batch normalisation is folded."""
        return self.low_precision_dtype is not None if self.fold == "auto" else self.fold

    @property
    def exact(self) -> bool:
        """Whether passes give what the model itself does, but for what merging rounds."""
        forms = (self.in_channels_last, self.folds, self.compile, self.tf32)
        return not (self.low_precision_dtype or any(forms) or self.attention == "products")

    @property
    def plain(self) -> "Engine":
        """What checks a search: the same batches, in the model's own precision and form."""
        return Engine(
            batch_size=self.batch_size,
            merge=self.merge,
            cuda_graph=self.cuda_graph,
            tf32=None if self.tf32 else self.tf32,
        )

    @contextmanager
    def training(self, device: torch.device) -> Iterator[None]:
        """What a training step's forward runs inside, on this device: autocast, which leaves
        weights and their gradients in fp32, and the way of attention. Nothing by default."""
        try:
            with surroundings(device.type, self.low_precision_dtype, self.attention, cache=True):
                yield
        except RuntimeError as error:
            if not self.in_channels_last or NO_VIEW not in str(error):
                raise
            expected = "False for a model that asks for views of contiguous maps"
            fix = "Set it, or use flatten or reshape in the model."
            raise ArgumentError(
                describe("channels_last", expected, repr(self.channels_last), fix)
            ) from error

    def to_memory_format(self, images: Tensor) -> Tensor:
        """Images (B, ...) in the layout of the passes: all maps of a forward follow them."""
        if not self.in_channels_last or images.ndim != 4:
            return images
        return images.contiguous(memory_format=torch.channels_last)

    def bind(self, model: Model) -> "SearchModel":
        """The model with this engine, taken wherever an attack takes a model.

        Of DistributedDataParallel, and of DataParallel on one device, the module inside is
        attacked: the same function, without the exchange of buffers in each pass, of which
        processes make different numbers.

        Raises:
            ArgumentError: it has an engine already, or is sharded over several processes.
            ArgumentTypeError: not callable, or a ScriptModule, whose weights cannot be replaced.
        """
        if isinstance(model, SearchModel):
            fix = "Give either a bound model or an engine; bind(bound.model) takes another."
            raise ArgumentError(
                describe("model", "a model without an engine", f"one bound to {model.engine}", fix)
            )
        if not callable(model):
            got = type(model).__name__
            raise ArgumentTypeError(describe("model", "a callable from images to logits", got))
        model = _unwrapped(model)
        changed = self.low_precision_dtype is not None or self.in_channels_last
        if changed and isinstance(model, torch.jit.ScriptModule):
            fix = "Its weights cannot be replaced for a call: give the nn.Module it was made of."
            raise ArgumentTypeError(describe("model", "a plain nn.Module", "a ScriptModule", fix))
        return SearchModel(model, self)


def _unwrapped(model: Model) -> Model:
    """The module that another one hands its input to, where that is all it does to the logits.

    Raises:
        ArgumentError: each pass gathers weights, so that all processes must make as many.
    """
    while isinstance(model, (DistributedDataParallel, nn.DataParallel)):
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            break
        model = model.module
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    parts = model.modules() if several and isinstance(model, nn.Module) else ()
    kinds = {kind.__name__ for part in parts for kind in type(part).__mro__}  # costly to import
    if kinds & {"FullyShardedDataParallel", "FSDPModule"}:
        fix = "Give each process a whole copy, from the full state dict."
        got = f"{type(model).__name__} with shards in several processes"
        raise ArgumentError(describe("model", "a module whose weights are all here", got, fix))
    return model


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
    engine: Engine

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
        low = engine.low_precision_dtype is not None or engine.in_channels_last
        if not low and engine.attention != "products" and not engine.compile:
            return self.model
        return EnginePasses(self.model, engine)

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (B, C), with a graph where autograd asks for one."""
        with set_tf32(self.engine.tf32):
            run = self.passes()
            found = [logits_of(run, x[part]) for part in self.batches(len(x))]
        return mended(found[0] if len(found) == 1 else torch.cat(found))


def bound(model: Model, engine: Engine | None = None) -> SearchModel:
    """`model` bound to `engine`; without one to its own, if it is bound, or to the default."""
    if isinstance(model, SearchModel) and engine is None:
        return model
    return (engine or Engine()).bind(model)


def plain(model: Model) -> SearchModel:
    """The model in its own precision, in the batches that its engine makes."""
    own = bound(model)
    return replace(own, engine=own.engine.plain)


def forget(model: nn.Module) -> None:
    """Free what is kept of a model from one attack to the next, as long as it lives: recordings,
    its compiled function, and converted, folded and merged weights."""
    graph.recordings.pop(model, None)
    forget_compiled(model)
    forget_buffers(model)


def logits_of(run: Model, x: Tensor) -> Tensor:
    """`run(x)` of a model that is not known yet to leave its images as they are.

    Raises:
        ArgumentError: it writes into `x`, which has its old values again.
    """
    copy, version = x.detach().clone(), None if x.is_inference() else x._version
    try:
        found = logits_in(run(x))  # not a copy: torch.compile warns of images that are no leaf
    except RuntimeError as error:
        if "leaf Variable that requires grad" not in str(error):
            raise
        raise _changed(run) from error
    changed = version is not None and x._version != version
    if x.is_cpu and not values_are_known():  # by x.data, of which no version tells
        changed = changed or not torch.allclose(x.detach(), copy, rtol=0, atol=0, equal_nan=True)
    if not changed:
        return found
    x.data.copy_(copy)
    raise _changed(run)


def _changed(run: Model) -> ArgumentError:
    name = type(getattr(run, "model", run)).__name__
    fix = "Write x = (x - mean) / std in its forward, not x.sub_(mean).div_(std)."
    expected = "a model that leaves its input as it is"
    return ArgumentError(describe("model", expected, f"{name}, which changes it in place", fix))

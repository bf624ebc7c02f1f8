"""Gradients with respect to the input, at the lowest cost, and nothing left behind."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

import torch
from torch import Tensor, nn

from roli_fast.engine.batch_norm import mended
from roli_fast.engine.compiled import logits_in
from roli_fast.engine.cost import Cost as Cost
from roli_fast.engine.engine import Model as Model
from roli_fast.engine.engine import bound, logits_of
from roli_fast.engine.fold import Folding
from roli_fast.engine.graph import Replays, Work, free_recordings
from roli_fast.engine.hold import Hold
from roli_fast.engine.low_precision import EnginePasses
from roli_fast.engine.merging import merge
from roli_fast.engine.tf32 import set_tf32
from roli_fast.errors import ArgumentError, ArgumentTypeError, RoliFastError, describe
from roli_fast.losses import Loss, SampleLoss, cross_entropy
from roli_fast.threat import values_are_known


class InputGradient:
    """Holds a model in attack mode and returns input gradients.

    In attack mode (inside `with`) the model is in eval mode and its parameters are frozen, so a
    backward pass computes the gradient of the input alone and stores no activation that only a
    weight gradient needs. On exit, also after an exception, every module's `training` flag and
    every parameter's `requires_grad` are as they were; `.grad`, buffers, autocast and the random
    state are never touched.

    Weights do not change meanwhile, so low-rank layers that offer it (`Mergeable`) are merged once,
    on entry (`Engine.merge`), into second buffers that are kept from one engine to the next.

    >>> with InputGradient(model) as gradient:
    ...     grad, loss, logits = gradient(x, y)

    Args:
        model: (B, ...) images -> (B, C) logits; an `nn.Module`, or any differentiable callable.
            Only a module can be frozen and put into eval mode; a lambda around one runs it as it
            is, so wrap it in a module instead. `Engine.bind` says how images pass through it.
        loss: per-sample loss, (logits (B, C), y (B,)) -> (B,). One that holds tensors of the
            batch's samples has `rows`, see `SampleLoss`.
    """

    cost: Cost
    """Passes made so far."""

    def __init__(self, model: Model, loss: Loss = cross_entropy) -> None:
        self._model = bound(model)
        self._run = self._model.model
        self._loss = loss
        self._folding: Folding | None = None
        self._hold: Hold | None = None
        self._replays: Replays | None = None
        self._entered = False
        self._checked = False
        self.cost = Cost(0, 0)

    def __enter__(self) -> "InputGradient":
        if self._entered:  # the second exit would restore what the first entry changed
            raise RoliFastError("This InputGradient is in use: make another one for a nested loop.")
        self._entered = True
        keep_freed_memory()
        engine, module = self._model.engine, self._model.module
        try:
            if module is not None:
                self._hold = Hold(module)
                self._change(module, self._hold)
            self._run = self._model.passes()
            if engine.cuda_graph is not False:
                self._replays = Replays(self._model.model, engine, self._converted)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _change(self, module: nn.Module, hold: Hold) -> None:
        """Freeze, merge and fold; `hold` takes it back."""
        hold.__enter__()
        engine = self._model.engine
        if engine.merge:
            hold.at_end(merge(module.modules(), engine.low_precision_dtype))
        if engine.folds:
            self._folding = Folding(module, engine.low_precision_dtype)
            hold.at_end(self._folding.clear)
            self._folding.fill()

    def __exit__(self, *_: object) -> None:
        if self._hold is not None:
            self._hold.end()
        self._hold = self._folding = self._replays = None
        self._run = self._model.model
        self._entered = False

    def __call__(
        self, x: Tensor, y: Tensor, loss: Loss | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One forward and one input-backward. The first call checks the labels (one host sync).

        Args:
            x: images (B, ...), floating point.
            y: labels (B,), integers in [0, C).
            loss: per-sample loss of this call, where it depends on the samples in the batch (a
                target class, say); None takes that of the engine.

        Returns:
            The gradient of the summed loss (like `x`), the per-sample loss (B,), and the logits
            (B, C), all detached.

        Raises:
            ArgumentError: labels, logits or loss of a wrong shape, labels out of range, or logits
                that do not depend on `x`.
            ArgumentTypeError: `x` is no floating-point tensor, or `y` not int64 on its device.
            RoliFastError: called outside `with`.
        """
        grad, losses, logits = self._batched(self._gradient, x, y, loss)
        self.cost += Cost(0, len(self.batches(len(x))), 0, len(x))
        return grad, losses, logits

    def batches(self, count: int) -> list[slice]:
        """How a pass over `count` images is split; `keep` takes no more than one of them."""
        return list(self._model.batches(count))

    def evaluate(self, x: Tensor, y: Tensor, loss: Loss | None = None) -> tuple[Tensor, Tensor]:
        """One forward without a graph: the per-sample loss (B,) and the logits (B, C)."""
        losses, logits = self._batched(self._evaluation, x, y, loss)
        return losses, logits

    def _batched(self, work: Work, x: Tensor, y: Tensor, loss: Loss | None) -> tuple[Tensor, ...]:
        """One batch after another, so that one graph is in memory."""
        self._check_call(x, y)
        loss, parts = loss or self._loss, self.batches(len(x))
        if len(parts) == 1:
            found = self._once(work, x, y, loss)
        else:
            some = []
            for part in parts:
                own = loss.rows(part) if isinstance(loss, SampleLoss) else loss
                some.append(self._once(work, x[part], y[part], own))
            with torch.inference_mode(False):
                found = tuple(torch.cat(batches) for batches in zip(*some, strict=True))
        self._checked = True
        self.cost += Cost(len(parts), 0, len(x))
        return found

    def _once(self, work: Work, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, ...]:
        """One pass, replayed where it is recorded; out of memory, once more without recordings."""
        check = None if self._checked else partial(check_range, y)
        with set_tf32(self._model.engine.tf32):
            try:
                if self._replays is not None:
                    return self._replays.run(work, x, y, loss, check)
                return work(x, y, loss, self._checked)
            except torch.OutOfMemoryError:
                if not free_recordings():
                    raise
            return work(x, y, loss, self._checked)  # out here, where the error holds no tensors

    def _gradient(self, x: Tensor, y: Tensor, loss: Loss, known: bool) -> tuple[Tensor, ...]:
        with _with_graph(x, y) as (leaf, labels):
            logits = self._logits(leaf, labels, known)
            losses = _losses(loss, logits, labels, known)
            grad = input_gradient(losses, leaf)
        return grad, losses.detach(), logits.detach()

    def _evaluation(self, x: Tensor, y: Tensor, loss: Loss, known: bool) -> tuple[Tensor, ...]:
        with torch.no_grad():
            logits = self._logits(x, y, known)
            return _losses(loss, logits, y, known), logits

    def keep(self, x: Tensor, y: Tensor) -> "KeptForward":
        """One forward whose graph is kept, for as many input-backwards as its user asks for.

        Raises:
            ArgumentError: more images than one of `batches` holds: their graphs would lie in
                memory together.
        """
        self._check_call(x, y)
        if len(self.batches(len(x))) > 1:
            size = self._model.engine.batch_size
            fix = "Keep one of `batches` after another."
            raise ArgumentError(describe("x", f"at most {size} images", len(x), fix))
        within = partial(set_tf32, self._model.engine.tf32)
        with within(), _with_graph(x, y) as (leaf, labels):
            logits = self._logits(leaf, labels, self._checked)
        self._checked = True
        self.cost += Cost(1, 0, len(x))
        return KeptForward(leaf, labels, logits, self._count_backward, within)

    def _converted(self) -> Sequence[Tensor]:
        return self._run.weights if isinstance(self._run, EnginePasses) else ()

    def _count_backward(self, images: int) -> None:
        self.cost += Cost(0, 1, 0, images)

    def _check_call(self, x: Tensor, y: Tensor) -> None:
        if not self._entered:
            raise RoliFastError(
                "InputGradient works inside `with InputGradient(model) as gradient`."
            )
        if self._checked:
            return
        check_tensor("x", x)
        check_tensor("y", y)
        if not x.is_floating_point():
            fix = "Divide uint8 images by 255."
            raise ArgumentTypeError(describe("x", "a floating-point tensor", x.dtype, fix))
        if y.shape[:1] != x.shape[:1]:  # a pass may be split
            raise ArgumentError(describe("y", f"shape ({len(x)},)", tuple(y.shape)))
        check_device(x, self._model.module)

    def _logits(self, x: Tensor, y: Tensor, known: bool) -> Tensor:
        """One forward; unless all is `known`, model, logits and labels are checked."""
        if self._folding is not None and not self._folding.check(x):
            self._run = self._model.passes()  # with weights converted anew
        if known:
            return mended(logits_in(self._run(x)))
        logits = mended(logits_of(self._run, x))
        check_logits(logits, x)
        check_labels(y, logits)
        return logits


_BYTES = 2**25 - 2**16
"""A little below 32 MiB, glibc's DEFAULT_MMAP_THRESHOLD_MAX."""


@cache
def keep_freed_memory() -> None:
    """Let the C library keep what a pass frees, up to 64 MB, for the next one; once a process.

    glibc raises the size from which a block is a mapping of its own to that of the largest such
    block that was freed, and the free memory that it keeps to twice that. So one block below its
    limit, which is never touched, saves some 13,000 page faults a step on a ViT-S of 8 images in
    bf16, 6 % of its time, and 750 of a small CNN, 15 %. Another C library has nothing to gain or
    lose.
    """
    torch.empty(_BYTES, dtype=torch.uint8, device="cpu")  # whatever the default device is


@contextlib.contextmanager
def _with_graph(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Images as a leaf, and labels, where autograd records: also inside inference mode."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = (x.clone() if x.is_inference() else x.detach()).requires_grad_(True)
        yield leaf, y.clone() if y.is_inference() else y


class KeptForward:
    """The logits of one forward, and gradients with respect to its input; made by the engine.

    An attack that decides by the logits whether it needs a gradient, or needs one for each class,
    pays one forward for all of it. The graph's memory is held as long as this object.
    """

    def __init__(
        self,
        leaf: Tensor,
        y: Tensor,
        logits: Tensor,
        count: Callable[[int], None],
        within: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        self._leaf, self._y, self._logits = leaf, y, logits
        self._count, self._within = count, within

    @property
    def logits(self) -> Tensor:
        """Logits (B, C), detached."""
        return self._logits.detach()

    def gradient(self, loss: Loss, *, last: bool = True) -> tuple[Tensor, Tensor]:
        """One input-backward.

        Args:
            loss: per-sample loss, (logits (B, C), y (B,)) -> (B,).
            last: free the graph; False where another gradient follows.

        Returns:
            The gradient of the summed loss (like x) and the per-sample loss (B,), both detached.

        Raises:
            ArgumentError: the logits do not depend on the input.
        """
        with self._within(), torch.inference_mode(False), torch.enable_grad():
            values = loss(self._logits, self._y)
            grad = input_gradient(values, self._leaf, keep=not last)
        self._count(len(self._leaf))
        return grad, values.detach()


def input_gradient(loss: Tensor, leaf: Tensor, *, keep: bool = False) -> Tensor:
    """The gradient of the summed loss with respect to `leaf`; `keep` keeps the graph.

    Raises:
        ArgumentError: the loss does not depend on `leaf`.
    """
    grad = None
    if loss.requires_grad:
        (grad,) = torch.autograd.grad(loss.sum(), leaf, allow_unused=True, retain_graph=keep)
    if grad is None:
        expected = "logits that depend on x through differentiable operations"
        fix = "Remove `torch.no_grad`, `.detach()` or `.data` from its forward."
        raise ArgumentError(describe("model", expected, "logits without a path to x", fix))
    return grad


def _losses(loss: Loss, logits: Tensor, y: Tensor, known: bool) -> Tensor:
    """One number a sample, which is checked unless it is `known`."""
    losses = loss(logits, y)
    got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
    if not known and got != tuple(y.shape):
        expected = f"one value a sample, shape {tuple(y.shape)}"
        fix = 'Use reduction="none": a mean would mix the samples of a batch.'
        raise ArgumentError(describe("loss", expected, got, fix))
    return losses


def check_tensor(name: str, value: object) -> None:
    """Raise `ArgumentTypeError` unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(describe(name, "a torch.Tensor", type(value).__name__))


def check_device(x: Tensor, module: nn.Module | None) -> None:
    """Raise unless `x` is where a model's weights are; one that spreads itself is left alone."""
    if module is None or isinstance(module, nn.DataParallel):
        return
    devices = {parameter.device for parameter in module.parameters()}
    if len(devices) == 1 and x.device not in devices:
        (device,) = devices
        fix = f"Move one of them: x.to({str(device)!r}) or model.to({str(x.device)!r})."
        raise ArgumentError(describe("x", f"images on {device}, where the model is", x.device, fix))


def check_logits(logits: object, x: Tensor) -> None:
    """Raise unless a model's output is (B, C) for the batch `x`."""
    if not isinstance(logits, Tensor):
        expected = "a model that returns a logits tensor (B, C)"
        fix = "Wrap it in an nn.Module whose forward returns the logits alone (a lambda would "
        fix += "leave the model in train mode)."
        raise ArgumentTypeError(describe("model", expected, type(logits).__name__, fix))
    if logits.ndim != 2 or logits.shape[0] != x.shape[0]:
        expected = f"logits of shape ({x.shape[0]}, C)"
        raise ArgumentError(describe("model", expected, tuple(logits.shape)))


def check_labels(y: Tensor, logits: Tensor, name: str = "y") -> None:
    """Raise unless `y` is (B,) int64 on the logits' device with values in [0, C). One sync, none
    within `threat.known_values`."""
    batch, classes = logits.shape
    check_tensor(name, y)
    expected = f"one class a sample, an int64 tensor of shape ({batch},)"
    got = f"{y.dtype} of shape {tuple(y.shape)}"
    if y.shape != (batch,):
        fix = "Several labels a sample and soft labels are not supported; of one-hot ones take "
        fix = f"{fix}y.argmax(1)." if y.ndim == 2 and y.shape[1] > 1 else ""
        raise ArgumentError(describe(name, expected, got, fix))
    if y.dtype != torch.int64:
        raise ArgumentTypeError(describe(name, expected, got, "Use y.long()."))
    if y.device != logits.device:
        raise ArgumentError(
            describe(name, f"labels on {logits.device}", y.device, "Move it there.")
        )
    check_range(y, classes, name)


def check_range(y: Tensor, classes: int, name: str = "y") -> None:
    """Raise unless all labels are in [0, classes). One sync."""
    if len(y) == 0 or values_are_known():
        return
    low, high = (int(value) for value in torch.aminmax(y))
    if low < 0 or high >= classes:
        expected = f"labels in [0, {classes}) for a model with {classes} outputs"
        fix = "Map the labels to 0..C-1, or build the model with num_classes to match."
        raise ArgumentError(describe(name, expected, f"labels from {low} to {high}", fix))

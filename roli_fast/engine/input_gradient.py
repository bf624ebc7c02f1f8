"""Gradients with respect to the input, at the lowest cost, and nothing left behind."""

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from types import TracebackType

import torch
from torch import Tensor, nn

from roli_fast.engine import graph
from roli_fast.engine.cost import Cost as Cost
from roli_fast.engine.engine import bound
from roli_fast.engine.folding import Folding
from roli_fast.engine.heap import keep_heap
from roli_fast.engine.kept_forward import KeptForward, input_gradient
from roli_fast.engine.look import look_at, settings
from roli_fast.engine.low_precision import EnginePasses
from roli_fast.engine.merging import Merging
from roli_fast.engine.search_model import Model as Model
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

    def __init__(self, model: Model, loss: Loss = cross_entropy) -> None:
        self._model = bound(model)
        self._run = self._model.model
        self._loss = loss
        self._merging = Merging()
        self._folding = Folding()
        self._entered = False
        self._checked = False
        self._training: list[tuple[nn.Module, bool]] = []
        self._unfrozen: list[nn.Parameter] = []
        self._forwards = self._forward_images = 0
        self._backwards = self._backward_images = 0
        self.classes = 0

    @property
    def cost(self) -> Cost:
        """Passes made so far."""
        return Cost(self._forwards, self._backwards, self._forward_images, self._backward_images)

    @cost.setter
    def cost(self, cost: Cost) -> None:
        self._forwards, self._forward_images = cost.forwards, cost.forward_images
        self._backwards, self._backward_images = cost.backwards, cost.backward_images

    def __enter__(self) -> "InputGradient":
        if self._entered:  # the second exit would restore what the first entry changed
            raise RoliFastError("This InputGradient is in use: make another one for a nested loop.")
        self._entered = True
        keep_heap()
        module = self._model.module
        if module is not None:
            self._training = [(part, part.training) for part in module.modules()]
            self._unfrozen = [p for p in module.parameters() if p.requires_grad]
        try:
            if module is not None:
                module.eval()
                for parameter in self._unfrozen:
                    parameter.requires_grad_(False)
                engine = self._model.engine
                if engine.merge:
                    self._merging.fill(module.modules(), engine.short_dtype)
                if engine.folds:
                    self._folding.fill(module, engine.short_dtype)
            self._run = self._model.passes()
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        self._folding.clear()
        self._merging.clear()
        for module, training in self._training:
            module.training = training
        for parameter in self._unfrozen:
            parameter.requires_grad_(True)
        self._training, self._unfrozen = [], []
        self._run = self._model.model  # converted weights are freed, but those of recordings
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
        self._check_call(x, y)
        parts = self.batches(len(x))
        if len(parts) == 1:
            found = self._gradient(x, y, loss)
        else:
            found = self._gradients(x, y, loss or self._loss, parts)
        self._checked = True
        return found

    def _gradients(
        self, x: Tensor, y: Tensor, loss: Loss, parts: list[slice]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One batch after another, so that one graph is in memory."""
        with torch.inference_mode(False):
            grad = torch.empty_like(x, requires_grad=False)
        losses, logits = [], []
        for part in parts:
            grad[part], some_losses, some_logits = self._gradient(
                x[part], y[part], rows_of(loss, part)
            )
            losses.append(some_losses)
            logits.append(some_logits)
        return grad, torch.cat(losses), torch.cat(logits)

    def batches(self, count: int) -> list[slice]:
        """How a pass over `count` images is split; `keep` takes no more than one of them."""
        return list(self._model.batches(count))

    def _gradient(self, x: Tensor, y: Tensor, loss: Loss | None) -> tuple[Tensor, Tensor, Tensor]:
        with _with_graph(x, y) as (leaf, labels):
            logits, losses = self._forward(leaf, labels, loss)
            grad = input_gradient(losses, leaf)
        self._count_backward(len(x))
        return grad, losses.detach(), logits.detach()

    def evaluate(self, x: Tensor, y: Tensor, loss: Loss | None = None) -> tuple[Tensor, Tensor]:
        """One forward without a graph: the per-sample loss (B,) and the logits (B, C)."""
        self._check_call(x, y)
        parts, loss = self.batches(len(x)), loss or self._loss
        with torch.no_grad():
            if len(parts) == 1:
                logits, losses = self._forward(x, y, loss)
            else:
                found = [self._forward(x[p], y[p], rows_of(loss, p)) for p in parts]
                logits, losses = map(torch.cat, zip(*found, strict=True))
        self._checked = True
        return losses, logits

    def keep(self, x: Tensor, y: Tensor) -> KeptForward:
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
        with _with_graph(x, y) as (leaf, labels):
            logits, _ = self._forward(leaf, labels, None)
        self._checked = True
        return KeptForward(leaf, labels, logits, self._count_backward)

    def loop(
        self, key: Hashable, inputs: Sequence[Tensor], y: Tensor, work: Callable[..., Tensor]
    ) -> Tensor:
        """`work(*inputs)`, replayed where `Engine.cuda_graph` has it recorded.

        Args:
            key: all that `work` depends on besides the inputs, the model and its engine.
            inputs: tensors; `work` may change the first in place.
            y: the labels among them, which are checked before a replay too (one host sync).
            work: passes of this engine and other operations, without a look at the device: no
                value that is brought to the host, no shape that depends on one.
        """
        asked, device = self._model, inputs[0].device
        if graph.excluded(asked.engine.cuda_graph, asked.model, device):
            return work(*inputs)
        assert asked.module is not None
        look = look_at(asked.module)
        if isinstance(self._run, EnginePasses):
            look.tensors.extend(self._run.weights)
        loop = graph.Loop((key, asked.engine, settings(device)), inputs, work)
        return graph.graphs_of(asked.module).run(
            asked.engine.cuda_graph, loop, look, self, lambda classes: check_range(y, classes)
        )

    def no_loop(self, reason: str) -> None:
        """Say why nothing is recorded, where cuda_graph=True asks for it."""
        graph.excluded(self._model.engine.cuda_graph, self._model.model, None, reason)

    def _count_backward(self, images: int) -> None:
        self._backwards += 1
        self._backward_images += images

    def _check_call(self, x: Tensor, y: Tensor) -> None:
        if not self._entered:
            raise RoliFastError(
                "InputGradient works inside `with InputGradient(model) as gradient`."
            )
        check_tensor("x", x)
        check_tensor("y", y)
        if not x.is_floating_point():
            raise ArgumentTypeError(
                describe("x", "a floating-point tensor", x.dtype, "Divide uint8 images by 255.")
            )
        if self._checked:
            return
        if y.shape[:1] != x.shape[:1]:  # a pass may be split
            raise ArgumentError(describe("y", f"shape ({len(x)},)", tuple(y.shape)))
        check_device(x, self._model.module)

    def _forward(self, x: Tensor, y: Tensor, loss: Loss | None) -> tuple[Tensor, Tensor]:
        logits = self._run(x)
        self._forwards += 1
        self._forward_images += len(x)
        if not self._checked:
            check_logits(logits, x)
            check_labels(y, logits)
        self.classes = logits.shape[1]
        losses = (loss or self._loss)(logits, y)
        if not self._checked:
            check_loss(losses, y)
        return logits, losses


@contextlib.contextmanager
def _with_graph(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Images as a leaf, and labels, where autograd records: also inside inference mode."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = (x.clone() if x.is_inference() else x.detach()).requires_grad_(True)
        yield leaf, y.clone() if y.is_inference() else y


def rows_of(loss: Loss, part: slice) -> Loss:
    """The loss of these samples of the batch."""
    return loss.rows(part) if isinstance(loss, SampleLoss) else loss


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
        raise ArgumentTypeError(
            describe(
                "model",
                "a model that returns a logits tensor (B, C)",
                type(logits).__name__,
                "Wrap it in an nn.Module whose forward returns the logits alone (a lambda would "
                "leave the model in train mode).",
            )
        )
    if logits.ndim != 2 or logits.shape[0] != x.shape[0]:
        raise ArgumentError(
            describe("model", f"logits of shape ({x.shape[0]}, C)", tuple(logits.shape))
        )


def check_loss(loss: object, y: Tensor) -> None:
    """Raise unless a loss function's value is one number a sample."""
    got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
    if got != tuple(y.shape):
        raise ArgumentError(
            describe(
                "loss",
                f"one value a sample, shape {tuple(y.shape)}",
                got,
                'Use reduction="none": a mean would mix the samples of a batch.',
            )
        )


def check_labels(y: Tensor, logits: Tensor) -> None:
    """Raise unless `y` is (B,) int64 on the logits' device with values in [0, C). One sync, none
    within `threat.known_values`."""
    batch, classes = logits.shape
    check_tensor("y", y)
    if y.dtype != torch.int64:
        fix = "Use y.long()."
        raise ArgumentTypeError(describe("y", "an int64 tensor of labels", y.dtype, fix))
    if y.shape != (batch,):
        raise ArgumentError(describe("y", f"shape ({batch},)", tuple(y.shape)))
    if y.device != logits.device:
        raise ArgumentError(describe("y", f"labels on {logits.device}", y.device, "Move it there."))
    check_range(y, classes)


def check_range(y: Tensor, classes: int) -> None:
    """Raise unless all labels are in [0, classes). One sync."""
    if len(y) == 0 or values_are_known():
        return
    low, high = (int(value) for value in torch.aminmax(y))
    if low < 0 or high >= classes:
        raise ArgumentError(
            describe(
                "y",
                f"labels in [0, {classes}) for a model with {classes} outputs",
                f"labels from {low} to {high}",
                "Map the labels to 0..C-1, or build the model with num_classes to match.",
            )
        )

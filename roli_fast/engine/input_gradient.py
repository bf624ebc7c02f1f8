"""Gradients with respect to the input, at the lowest cost, and nothing left behind."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

import torch
from torch import Tensor, nn

from roli_fast.engine.kept_forward import KeptForward, input_gradient
from roli_fast.engine.merging import Merging
from roli_fast.errors import ArgumentError, ArgumentTypeError, RoliFastError, describe
from roli_fast.losses import Loss, cross_entropy

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Cost:
    """Model passes: `forwards`, and `backwards` to the input only.

    Samples that are done may leave a batch, so `forward_images` and `backward_images` count the
    images in these passes; they take no part in a comparison of costs.
    """

    forwards: int
    backwards: int
    forward_images: int = field(default=0, compare=False)
    backward_images: int = field(default=0, compare=False)


class InputGradient:
    """Holds a model in attack mode and returns input gradients.

    In attack mode (inside `with`) the model is in eval mode and its parameters are frozen, so a
    backward pass computes the gradient of the input alone and stores no activation that only a
    weight gradient needs. On exit, also after an exception, every module's `training` flag and
    every parameter's `requires_grad` are as they were; `.grad`, buffers, autocast and the random
    state are never touched.

    Weights do not change meanwhile, so low-rank layers that offer it (`Mergeable`) are merged once,
    on entry, into second buffers that are kept from one engine to the next.

    >>> with InputGradient(model) as gradient:
    ...     grad, loss, logits = gradient(x, y)

    Args:
        model: (B, ...) images -> (B, C) logits; an `nn.Module`, or any differentiable callable.
            Only a module can be frozen and put into eval mode; a lambda around one runs it as it
            is, so wrap it in a module instead.
        loss: per-sample loss, (logits (B, C), y (B,)) -> (B,).
        merge: merge low-rank layers; without it they compute weight and update one by one.
    """

    def __init__(self, model: Model, loss: Loss = cross_entropy, *, merge: bool = True) -> None:
        if not callable(model):
            raise ArgumentTypeError(
                describe("model", "a callable from images to logits", type(model).__name__)
            )
        self._model = model
        self._loss = loss
        self._merge = merge
        self._merging = Merging()
        self._entered = False
        self._checked = False
        self._training: list[tuple[nn.Module, bool]] = []
        self._unfrozen: list[nn.Parameter] = []
        self._forwards = self._forward_images = 0
        self._backwards = self._backward_images = 0

    @property
    def cost(self) -> Cost:
        """Passes made so far."""
        return Cost(self._forwards, self._backwards, self._forward_images, self._backward_images)

    def __enter__(self) -> "InputGradient":
        if self._entered:  # the second exit would restore what the first entry changed
            raise RoliFastError("This InputGradient is in use: make another one for a nested loop.")
        self._entered = True
        if isinstance(self._model, nn.Module):
            self._training = [(module, module.training) for module in self._model.modules()]
            self._unfrozen = [p for p in self._model.parameters() if p.requires_grad]
            try:
                self._model.eval()
                for parameter in self._unfrozen:
                    parameter.requires_grad_(False)
                if self._merge:
                    self._merging.fill(self._model.modules())
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
        self._merging.clear()
        for module, training in self._training:
            module.training = training
        for parameter in self._unfrozen:
            parameter.requires_grad_(True)
        self._training, self._unfrozen = [], []
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
        with torch.inference_mode(False), torch.enable_grad():
            leaf = (x.clone() if x.is_inference() else x.detach()).requires_grad_(True)
            labels = y.clone() if y.is_inference() else y
            logits, losses = self._forward(leaf, labels, loss)
            grad = input_gradient(losses, leaf)
        self._count_backward(len(x))
        return grad, losses.detach(), logits.detach()

    def evaluate(self, x: Tensor, y: Tensor, loss: Loss | None = None) -> tuple[Tensor, Tensor]:
        """One forward without a graph: the per-sample loss (B,) and the logits (B, C)."""
        self._check_call(x, y)
        with torch.no_grad():
            logits, losses = self._forward(x, y, loss)
            return losses, logits

    def keep(self, x: Tensor, y: Tensor) -> KeptForward:
        """One forward whose graph is kept, for as many input-backwards as its user asks for."""
        self._check_call(x, y)
        with torch.inference_mode(False), torch.enable_grad():
            leaf = (x.clone() if x.is_inference() else x.detach()).requires_grad_(True)
            labels = y.clone() if y.is_inference() else y
            logits, _ = self._forward(leaf, labels, None)
        return KeptForward(leaf, labels, logits, self._count_backward)

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

    def _forward(self, x: Tensor, y: Tensor, loss: Loss | None) -> tuple[Tensor, Tensor]:
        logits = self._model(x)
        self._forwards += 1
        self._forward_images += len(x)
        if not self._checked:
            check_logits(logits, x)
            check_labels(y, logits)
        losses = (loss or self._loss)(logits, y)
        if not self._checked:
            check_loss(losses, y)
            self._checked = True
        return logits, losses


def check_tensor(name: str, value: object) -> None:
    """Raise `ArgumentTypeError` unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(describe(name, "a torch.Tensor", type(value).__name__))


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
    """Raise unless `y` is (B,) int64 on the logits' device with values in [0, C). One sync."""
    batch, classes = logits.shape
    check_tensor("y", y)
    if y.dtype != torch.int64:
        fix = "Use y.long()."
        raise ArgumentTypeError(describe("y", "an int64 tensor of labels", y.dtype, fix))
    if y.shape != (batch,):
        raise ArgumentError(describe("y", f"shape ({batch},)", tuple(y.shape)))
    if y.device != logits.device:
        raise ArgumentError(describe("y", f"labels on {logits.device}", y.device, "Move it there."))
    if batch == 0:
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

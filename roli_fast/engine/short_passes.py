"""Passes in bf16 or fp16 through a model whose weights are fp32 and stay so."""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from roli_fast.engine.attention import MatrixAttention
from roli_fast.errors import ArgumentTypeError, describe

_CONVERTED = (nn.Linear, _ConvNd, nn.MultiheadAttention)
"""Modules whose weights autocast would convert at each call, low-rank layers among them. All else
stays as it is: normalisation has few weights, and its kernels take both dtypes; and what a model
derives from a parameter of its own, and keeps in eval mode, must outlive the passes in fp32."""

_NO_VIEW = "view size is not compatible"
"""What torch says of a `view` that joins axes of a map that lies in channels_last."""

FP16_SCALE = 1024.0
"""What gradients are multiplied by on their way through fp16, whose smallest number is 6e-8."""


class ShortPasses:
    """A model's passes under autocast, with weights that are converted once and not at each call.

    Autocast keeps the converted weights of a training step only, those that require a gradient; a
    frozen network's are converted anew in every pass. Here they are second tensors, which take the
    place of the module's during a call, convolutions' in channels_last until the model asks for a
    view that only contiguous maps have. `functional_call` would do that too, but leaves a module
    that has two names with the second tensors.

    Args:
        model: a module, or a callable, which autocast alone serves.
        dtype: torch.bfloat16 or torch.float16.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
        self._model, self._dtype = model, dtype
        self._rows = torch.channels_last
        self._weights: list[_Weight] = []
        if isinstance(model, nn.Module):
            with torch.inference_mode(False), torch.no_grad():
                self._weights = _converted(model, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Logits in fp32.

        Raises:
            ArgumentTypeError: images that are not fp32.
        """
        if x.dtype != torch.float32:
            fix = "Give x in fp32, or a SearchModel without a dtype."
            raise ArgumentTypeError(describe("x", "fp32 images", x.dtype, fix))
        graph = torch.is_grad_enabled() and x.requires_grad
        if graph and self._dtype == torch.float16:
            x = x.view_as(x)
            x.register_hook(lambda grad: grad / FP16_SCALE)
        logits = self._logits(x, graph)
        if not isinstance(logits, Tensor):
            return logits
        logits = logits.float()
        if logits.requires_grad and self._dtype == torch.float16:
            logits.register_hook(lambda grad: grad * FP16_SCALE)
        return logits

    def _logits(self, x: Tensor, graph: bool) -> Tensor:
        """What the model returns; where it has no view of channels_last, of contiguous maps."""
        try:
            return self._once(x, graph)
        except RuntimeError as error:
            if self._rows == torch.contiguous_format or _NO_VIEW not in str(error):
                raise
        self._make_contiguous()  # out here, where the error no longer holds the first maps
        return self._once(x, graph)

    def _once(self, x: Tensor, graph: bool) -> Tensor:
        if x.ndim == 4:
            x = x.contiguous(memory_format=self._rows)
        by_matrices = graph and x.device.type == "cpu"
        with (
            torch.autocast(x.device.type, self._dtype, cache_enabled=False),
            MatrixAttention() if by_matrices else contextlib.nullcontext(),
            _in_place(self._weights),
        ):
            return self._model(x)

    def _make_contiguous(self) -> None:
        """For all later passes; new tensors, as the graph of an earlier one holds the old."""
        self._rows = torch.contiguous_format
        with torch.inference_mode(False), torch.no_grad():
            made = {
                weight.short: nn.Parameter(weight.short.contiguous(), requires_grad=False)
                for weight in self._weights
            }
        self._weights = [weight._replace(short=made[weight.short]) for weight in self._weights]


class _Weight(NamedTuple):
    """A weight, where its module keeps it, and what takes its place."""

    owner: dict[str, nn.Parameter | None]
    name: str
    own: nn.Parameter
    short: nn.Parameter


@contextlib.contextmanager
def _in_place(weights: list[_Weight]) -> Iterator[None]:
    """The short weights in the place of the modules' own."""
    try:
        for weight in weights:
            weight.owner[weight.name] = weight.short
        yield
    finally:
        for weight in weights:
            weight.owner[weight.name] = weight.own


def _converted(model: nn.Module, dtype: torch.dtype) -> list[_Weight]:
    """The fp32 weights of linear layers and convolutions in `dtype`; tied weights stay tied."""
    found: list[_Weight] = []
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        if not isinstance(module, _CONVERTED):
            continue
        for name, own in module._parameters.items():
            if own is None or own.dtype != torch.float32 or _makes_another(module, name):
                continue
            if own not in made:
                rows = torch.channels_last if own.ndim == 4 else torch.preserve_format
                short = own.detach().to(dtype, memory_format=rows)
                made[own] = nn.Parameter(short, requires_grad=False)
            found.append(_Weight(module._parameters, name, own, made[own]))
    return found


def _makes_another(module: nn.Module, name: str) -> bool:
    """Whether a hook computes the weight from this one, in fp32 as its buffers are: `weight_orig`
    of spectral_norm and pruning, `weight_g` and `weight_v` of weight_norm."""
    return name.rpartition("_")[0] in module.__dict__

"""Passes in a short dtype, another layout or attention, through a model that keeps its own."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from roli_fast.engine.attention import attention_by
from roli_fast.engine.compiled import CompiledPasses
from roli_fast.engine.lanes import Lanes
from roli_fast.engine.second_weights import SecondWeights
from roli_fast.errors import ArgumentTypeError, describe

NO_VIEW = "view size is not compatible"
"""What torch says of a `view` that joins axes of a map that lies in channels_last."""

_NOTHING = contextlib.nullcontext()

FP16_SCALE = 1024.0
"""What gradients are multiplied by on their way through fp16, whose smallest number is 6e-8."""


class EnginePasses:
    """A model's passes as an engine asks for them, with weights that are converted once.

    Autocast keeps the converted weights of a training step only, those that require a gradient; a
    frozen network's are converted anew in every pass. Here they are second tensors, which take the
    place of the module's during a call. Maps lie in channels_last until the model asks for a view
    that only contiguous ones have.

    Args:
        model: a module, or a callable, which autocast alone serves.
        dtype: torch.bfloat16 or torch.float16; None leaves the model's own.
        rows_last: images and convolutions' weights in channels_last.
        attention: "auto", "fused" or "products".
        compiled: through torch.compile.
        keep: converted weights stay where they are from one use to the next, for recordings.
    """

    def __init__(  # noqa: PLR0913 - what an engine says
        self,
        model: Callable[[Tensor], Tensor],
        dtype: torch.dtype | None,
        *,
        rows_last: bool,
        attention: str,
        compiled: bool = False,
        keep: bool = False,
    ) -> None:
        self.model = model
        self._model, self._dtype, self._attention = model, dtype, attention
        if compiled:
            self._model = CompiledPasses(model)
        self._rows = torch.channels_last if rows_last else torch.preserve_format
        self._weights: SecondWeights | None = None
        if isinstance(model, nn.Module) and (dtype or rows_last):
            make = SecondWeights.kept if keep else SecondWeights
            self._weights = make(model, dtype, rows_last=rows_last)
        self._compiled = compiled
        self._lanes = self._make_lanes()

    @property
    def weights(self) -> list[Tensor]:
        """The converted weights."""
        return self._weights.tensors if self._weights else []

    def __call__(self, x: Tensor) -> Tensor:
        """Logits, in fp32 where the passes are in a short dtype.

        Raises:
            ArgumentTypeError: images that are not fp32, for passes in a short dtype.
        """
        if self._dtype is None:
            return self._logits(x)
        if x.dtype != torch.float32:
            fix = "Give x and the model in fp32, or an Engine without a dtype."
            raise ArgumentTypeError(describe("x", "fp32 images", x.dtype, fix))
        scaled = self._dtype == torch.float16
        if scaled and torch.is_grad_enabled() and x.requires_grad:
            x = x.view_as(x)
            x.register_hook(lambda grad: grad / FP16_SCALE)
        logits = self._logits(x)
        if not isinstance(logits, Tensor):
            return logits
        logits = logits.float()
        if scaled and logits.requires_grad:
            logits.register_hook(lambda grad: grad * FP16_SCALE)
        return logits

    def _logits(self, x: Tensor) -> Tensor:
        """What the model returns; where it has no view of channels_last, of contiguous maps."""
        try:
            return self._once(x)
        except RuntimeError as error:
            if self._rows != torch.channels_last or NO_VIEW not in str(error):
                raise
        self._rows = torch.contiguous_format
        if self._weights is not None:  # out here, where the error no longer holds the first maps
            self._weights.make_contiguous()
            self._lanes = self._make_lanes()
        return self._once(x)

    def _once(self, x: Tensor) -> Tensor:
        if x.ndim == 4 and self._rows != torch.preserve_format:
            x = x.contiguous(memory_format=self._rows)
        with (
            surroundings(x.device.type, self._dtype, self._attention, cache=False),
            self._lanes.inside(x),
            self._weights.in_place() if self._weights else _NOTHING,
        ):
            return self._model(x)

    def _make_lanes(self) -> Lanes:
        """Around the weights as they are now; a compiled model has its own ways."""
        return Lanes(self._model, None if self._compiled else self._dtype, self.weights)


@contextlib.contextmanager
def surroundings(
    kind: str, dtype: torch.dtype | None, attention: str, *, cache: bool
) -> Iterator[None]:
    """What passes on devices of this kind run inside: autocast to `dtype`, and a way of attention.

    `cache`: whether a weight that requires a gradient is converted once for all passes inside.
    """
    in_short = torch.autocast(kind, dtype, cache_enabled=cache) if dtype else _NOTHING
    with in_short, attention_by(attention, kind, dtype):
        yield

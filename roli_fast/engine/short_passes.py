"""Passes in bf16 or fp16 through a model whose weights are fp32 and stay so."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from roli_fast.errors import ArgumentTypeError, describe

_IN_FP32 = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Modules whose weights stay as they are: they are few, and their kernels take both dtypes."""


class ShortPasses:
    """A model's passes under autocast, with weights that are converted once and not at each call.

    Autocast keeps the converted weights of a training step only, those that require a gradient; a
    frozen network's are converted anew in every pass. Here they are second tensors, by which a call
    replaces the module's, convolutions' in channels_last. The module's own are not touched.

    Args:
        model: a module, or a callable, which autocast alone serves.
        dtype: torch.bfloat16 or torch.float16.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
        self._model, self._dtype = model, dtype
        self._weights: dict[str, Tensor] = {}
        if isinstance(model, nn.Module):
            with torch.inference_mode(False), torch.no_grad():
                self._weights = _converted(model, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Logits in fp32."""
        if x.dtype != torch.float32:
            fix = "Give x in fp32, or a SearchModel without a dtype."
            raise ArgumentTypeError(describe("x", "fp32 images", x.dtype, fix))
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, self._dtype, cache_enabled=False):
            if isinstance(self._model, nn.Module):
                logits = functional_call(self._model, self._weights, (x,))
            else:
                logits = self._model(x)
        return logits.float() if isinstance(logits, Tensor) else logits


def _converted(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Name -> the weight in `dtype`, for all fp32 weights outside normalisation layers."""
    found: dict[str, Tensor] = {}
    seen: dict[nn.Parameter, Tensor] = {}  # tied weights stay tied
    for path, module in model.named_modules():
        if isinstance(module, _IN_FP32):
            continue
        for name, weight in module.named_parameters(path, recurse=False):
            if weight.dtype != torch.float32:
                continue
            if weight not in seen:
                rows = torch.channels_last if weight.ndim == 4 else torch.preserve_format
                seen[weight] = weight.detach().to(dtype, memory_format=rows)
            found[name] = seen[weight]
    return found

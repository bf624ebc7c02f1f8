"""A model's weights in another dtype or layout: second tensors that stand in during a call."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

_CONVERTED = (nn.Linear, _ConvNd, nn.MultiheadAttention)
"""Modules whose weights autocast would convert at each call, low-rank layers among them. All else
stays as it is: normalisation has few weights, and its kernels take both dtypes; and what a model
derives from a parameter of its own, and keeps in eval mode, must outlive the passes in fp32."""


class SecondWeights:
    """The weights of linear layers and convolutions, converted once; tied weights stay tied.

    `functional_call` would do that too, but leaves a module that has two names with the second
    tensors.

    Args:
        model: whose weights they are.
        dtype: of the second tensors, which only fp32 weights have; None keeps each weight's.
        rows_last: whether those of two-dimensional convolutions lie in channels_last.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None, *, rows_last: bool) -> None:
        self._weights: list[_Weight] = []
        made: dict[nn.Parameter, nn.Parameter] = {}
        with torch.inference_mode(False), torch.no_grad():
            for owner, name, own in _convertible(model):
                laid = rows_last and own.ndim == 4
                if own.dtype != torch.float32 if dtype else not laid:
                    continue
                if own not in made:
                    rows = torch.channels_last if laid else torch.preserve_format
                    second = own.detach().to(dtype or own.dtype, memory_format=rows, copy=True)
                    made[own] = nn.Parameter(second, requires_grad=False)
                self._weights.append(_Weight(owner, name, own, made[own]))

    def tensors(self) -> list[nn.Parameter]:
        """The second tensors."""
        return [weight.second for weight in self._weights]

    def make_contiguous(self) -> None:
        """For all later calls; new tensors, as the graph of an earlier one holds the old."""
        with torch.inference_mode(False), torch.no_grad():
            made = {
                weight.second: nn.Parameter(weight.second.contiguous(), requires_grad=False)
                for weight in self._weights
            }
        self._weights = [weight._replace(second=made[weight.second]) for weight in self._weights]

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The second weights in the place of the modules' own."""
        weights = self._weights
        try:
            for weight in weights:
                weight.owner[weight.name] = weight.second
            yield
        finally:
            for weight in weights:
                weight.owner[weight.name] = weight.own


class _Weight(NamedTuple):
    """A weight, where its module keeps it, and what takes its place."""

    owner: dict[str, nn.Parameter | None]
    name: str
    own: nn.Parameter
    second: nn.Parameter


def _convertible(
    model: nn.Module,
) -> Iterator[tuple[dict[str, nn.Parameter | None], str, nn.Parameter]]:
    """Where a module keeps a weight, its name there, and the weight."""
    for module in model.modules():
        if isinstance(module, _CONVERTED):
            for name, own in module._parameters.items():
                if own is not None and not _makes_another(module, name):
                    yield module._parameters, name, own


def _makes_another(module: nn.Module, name: str) -> bool:
    """Whether a hook computes the weight from this one, in fp32 as its buffers are: `weight_orig`
    of spectral_norm and pruning, `weight_g` and `weight_v` of weight_norm."""
    return name.rpartition("_")[0] in module.__dict__

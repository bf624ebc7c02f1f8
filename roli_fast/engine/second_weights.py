"""A model's weights in another dtype or layout: second tensors that stand in during a call."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
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
        self._dtype, self._rows_last = dtype, rows_last
        self._weights: list[_Weight] = []
        made: dict[nn.Parameter, nn.Parameter] = {}
        with torch.inference_mode(False), torch.no_grad():
            for owner, name, own in self._chosen(model):
                if own not in made:
                    laid = rows_last and own.ndim == 4
                    rows = torch.channels_last if laid else torch.preserve_format
                    second = own.detach().to(dtype or own.dtype, memory_format=rows, copy=True)
                    made[own] = nn.Parameter(second, requires_grad=False)
                self._weights.append(_Weight(owner, name, own, made[own]))

    def _chosen(self, model: nn.Module) -> "Iterator[_Place]":
        """Weights that have another form."""
        for place in _convertible(model):
            laid = self._rows_last and place.own.ndim == 4
            if place.own.dtype == torch.float32 if self._dtype else laid:
                yield place

    @staticmethod
    def kept(model: nn.Module, dtype: torch.dtype | None, *, rows_last: bool) -> "SecondWeights":
        """Those of the last time, refilled where they lie, as recordings read them there."""
        mine = _kept.setdefault(model, {})
        found = mine.get((dtype, rows_last))
        if found is None or not found._refill(model):
            found = mine[dtype, rows_last] = SecondWeights(model, dtype, rows_last=rows_last)
        return found

    def _refill(self, model: nn.Module) -> bool:
        """Convert again, in place; False where the model has other weights by now."""
        chosen = list(self._chosen(model))
        if len(chosen) != len(self._weights) or not all(map(_fits, self._weights, chosen)):
            return False
        with torch.inference_mode(False), torch.no_grad():
            for second, own in {w.second: w.own for w in self._weights}.items():
                second.data.copy_(own)  # data: the graph of a pass is not told of equal numbers
        return True

    @property
    def tensors(self) -> list[Tensor]:
        """The second weights."""
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


_kept: "WeakKeyDictionary[nn.Module, dict[tuple[torch.dtype | None, bool], SecondWeights]]" = (
    WeakKeyDictionary()
)


def forget_second_weights(model: nn.Module) -> None:
    """Free what is kept of a model's converted weights."""
    _kept.pop(model, None)


class _Weight(NamedTuple):
    """A weight, where its module keeps it, and what takes its place."""

    owner: dict[str, nn.Parameter | None]
    name: str
    own: nn.Parameter
    second: nn.Parameter


class _Place(NamedTuple):
    """Where a module keeps a weight, its name there, and the weight."""

    owner: dict[str, nn.Parameter | None]
    name: str
    own: nn.Parameter


def _fits(weight: _Weight, place: _Place) -> bool:
    """Whether this is still the weight in this place, and its second one has its shape."""
    second, own = weight.second, place.own
    same = weight.owner is place.owner and weight.name == place.name and weight.own is own
    return same and (second.shape, second.device) == (own.shape, own.device)


def _convertible(model: nn.Module) -> Iterator[_Place]:
    """Weights that autocast would convert."""
    for module in model.modules():
        if isinstance(module, _CONVERTED):
            for name, own in module._parameters.items():
                if own is not None and not _makes_another(module, name):
                    yield _Place(module._parameters, name, own)


def _makes_another(module: nn.Module, name: str) -> bool:
    """Whether a hook computes the weight from this one, in fp32 as its buffers are: `weight_orig`
    of spectral_norm and pruning, `weight_g` and `weight_v` of weight_norm."""
    return name.rpartition("_")[0] in module.__dict__

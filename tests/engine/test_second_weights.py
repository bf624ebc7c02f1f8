"""Weights in another form that stay where they are, for recordings that read them there."""

import gc
import weakref

import pytest
import torch
from tiny_models import Mixed
from torch import nn

from roli_fast.engine.low_precision import SecondWeights, forget_second_weights

SHORT = torch.bfloat16


def kept(model: nn.Module, dtype: torch.dtype = SHORT, *, rows_last: bool = True) -> SecondWeights:
    return SecondWeights.kept(model, dtype, rows_last=rows_last)


def places(weights: SecondWeights) -> list[int]:
    return [tensor.data_ptr() for tensor in weights.tensors]


def test_filled_again_where_they_are() -> None:
    model = Mixed()
    first = kept(model)
    before = places(first)
    assert len(before) >= 2
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    again = kept(model)
    assert places(again) == before
    fresh = SecondWeights(model, SHORT, rows_last=True)
    assert all(torch.equal(a, b) for a, b in zip(again.tensors, fresh.tensors, strict=True))


@pytest.mark.parametrize("change", ["weight", "layer"])
def test_a_model_with_other_weights(change: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    before = kept(model)
    if change == "weight":
        model[1].weight = nn.Parameter(torch.ones(4, 4))  # type: ignore[index]
    else:
        model.append(nn.Linear(4, 2))
    found = kept(model)
    fresh = SecondWeights(model, SHORT, rows_last=True)
    assert found is not before and len(found.tensors) == len(fresh.tensors)
    assert all(torch.equal(a, b) for a, b in zip(found.tensors, fresh.tensors, strict=True))


def test_contiguous_ones_stay_so() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    first = kept(model)
    first.make_contiguous()
    before = places(first)
    again = kept(model)
    assert places(again) == before
    assert all(tensor.is_contiguous() for tensor in again.tensors)


def test_they_go_with_the_model_or_when_asked() -> None:
    model = Mixed()
    tensor = weakref.ref(kept(model).tensors[0])
    gc.collect()
    assert tensor() is not None
    forget_second_weights(model)
    gc.collect()
    assert tensor() is None
    tensor, gone = weakref.ref(kept(model).tensors[0]), weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None and tensor() is None

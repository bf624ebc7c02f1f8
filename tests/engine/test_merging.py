"""Low-rank layers in an attack: merged once, the same gradients, and nothing left behind."""

import copy
from typing import Any

import pytest
import torch
from tiny_models import images, untouched
from torch import Tensor, nn

from roli_fast import ops
from roli_fast.attacks import PGD
from roli_fast.engine import Cost, Engine, InputGradient, MergeRequest, forget

X, Y = images(4, 12), torch.tensor([0, 3, 1, 2])
ROWS = ((0, 3), (6, 8))


class Low(nn.Module):
    """A linear layer with low-rank updates that notes how it was computed."""

    def __init__(self, width: int, out: int, rows: Any = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(width + out)
        covered = sum(stop - start for start, stop in rows or ((0, out),))

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator))

        self.weight, self.bias = drawn(out, width), drawn(out)
        self.a, self.b = drawn(2 * len(rows or (0,)), width), drawn(covered, 2)
        self.rows = rows
        self.merged: Tensor | None = None
        self.ways: list[str] = []

    def merge_request(self) -> MergeRequest:
        return MergeRequest(self.weight, self.a, self.b, 0.5, self.rows)

    def forward(self, x: Tensor) -> Tensor:
        self.ways.append("apart" if self.merged is None else str(self.merged.dtype))
        if self.merged is not None:
            return nn.functional.linear(x, self.merged, self.bias)
        return ops.lora_linear(x, self.weight, self.bias, self.a, self.b, scale=0.5, rows=self.rows)


def network() -> nn.Sequential:
    return nn.Sequential(Low(12, 8, ROWS), nn.Tanh(), nn.Linear(8, 8), Low(8, 4))


def gradient_of(model: nn.Module, **options: Any) -> Tensor:
    with InputGradient(Engine(**options).bind(model)) as gradient:
        return gradient(X, Y)[0]


def test_the_same_gradient_by_one_matrix() -> None:
    model = network()
    with untouched(model):
        apart, merged = gradient_of(model, merge=False), gradient_of(model)
    assert torch.allclose(apart, merged, rtol=1e-4, atol=1e-6)
    assert model[0].ways == model[3].ways == ["apart", "torch.float32"]
    expected = model[3].weight + 0.5 * model[3].b @ model[3].a
    with untouched(model), pytest.raises(ZeroDivisionError), InputGradient(model):
        assert torch.allclose(model[3].merged, expected, rtol=0, atol=1e-6)
        raise ZeroDivisionError
    assert model[0].merged is None and model[3].merged is None


def test_one_merge_an_engine_and_no_new_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = ops.lora_merge_
    monkeypatch.setattr(
        ops, "lora_merge_", lambda *a, **k: (calls.append(len(a[0])), real(*a, **k))
    )
    model = network()
    result = PGD(eps=0.1, step_size=0.05, steps=3).run(model, X, Y)
    assert calls == [2] and result.cost == Cost(3, 3)
    assert model[0].ways == ["torch.float32"] * 3
    with InputGradient(model) as outer:
        before = model[0].merged
        with InputGradient(model) as inner:
            assert model[0].merged is before
            inner(X, Y)
        assert model[0].merged is before
        outer(X, Y)
    assert calls == [2, 2] and model[0].merged is None


def test_a_merge_that_fails_leaves_the_model_as_it_was() -> None:
    model = network()
    model[3].b = nn.Parameter(torch.zeros(5, 2))
    with untouched(model), pytest.raises(ValueError, match="`b`"):
        gradient_of(model)
    assert model[0].merged is None


def test_buffers_are_kept_and_follow_the_weights() -> None:
    model = network()
    names = list(model.state_dict())
    addresses, results = [], []
    for _ in range(3):
        with InputGradient(model):
            addresses.append(model[0].merged.data_ptr())
            results.append(model[0].merged.clone())
            assert list(model.state_dict()) == names
        with torch.no_grad():
            model[0].b.add_(1.0)
    assert len(set(addresses)) == 1
    assert not torch.equal(results[0], results[1])
    twin = copy.deepcopy(model)
    with InputGradient(model), InputGradient(twin):
        assert model[0].merged.data_ptr() != twin[0].merged.data_ptr()
    forget(model)
    model.double()
    with InputGradient(model):
        assert model[0].merged.dtype == torch.float64


def test_buffers_in_autocasts_dtype() -> None:
    model = network()
    with torch.autocast("cpu", torch.bfloat16):
        merged = gradient_of(model)
    assert model[0].ways == ["torch.bfloat16"]
    assert torch.allclose(merged, gradient_of(model), rtol=0.1, atol=0.1)

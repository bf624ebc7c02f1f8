"""What every analysis keeps: it has a sibling that gives its cost, and says it before it runs."""

import inspect
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_models import images, tiny
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from roli_fast.analysis import Cost, features, gathering, head, residual, sensitivity
from roli_fast.data import Batch

MODULES = (features, gathering, head, residual, sensitivity)
PLAIN = {"attacked", "residual"}
"""Parts of an analysis that are public because others build on them."""

N, D, C = 12, 16, 5


def arguments() -> dict[str, Any]:
    """What analyses and their costs take, by the name of the parameter."""
    model, x, y = tiny(num_classes=C), images(N, 3, 8, 8), torch.arange(N) % C
    some = torch.randn(2, N, D, generator=torch.Generator().manual_seed(0))
    same: dict[str, Any] = dict.fromkeys(("before", "clean", "first", "phi"), some[0])
    same |= dict.fromkeys(("after", "adversarial", "second"), some[1])
    numbers = {"images": N, "dimensions": D, "classes": C}
    named = {"logits": some[0, :, :C], "y": y, "model": model, "head": model.head, "norm": "l2"}
    return same | numbers | named | {"batches": [Batch(x, y, y)]}


def analyses() -> list[tuple[ModuleType, str]]:
    """(module, function) of every analysis defined there."""
    found = []
    for module in MODULES:
        for name, function in inspect.getmembers(module, inspect.isfunction):
            own = function.__module__ == module.__name__ and not name.startswith("_")
            if own and not name.endswith("_cost") and name not in PLAIN:
                found.append((module, name))
    return found


def call(function: Callable[..., Any]) -> Any:
    """With all that it must be given."""
    known = arguments()
    needed = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    return function(**{parameter.name: known[parameter.name] for parameter in needed})


@pytest.mark.parametrize(("module", "name"), analyses(), ids=lambda part: str(part))
def test_its_cost_is_said_before_it_runs(
    module: ModuleType, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    cost = call(getattr(module, f"{name}_cost"))
    assert isinstance(cost, Cost) and cost.flops + cost.forwards > 0 and cost.bytes > 0
    with caplog.at_level(logging.INFO, "roli_fast.analysis"):
        call(getattr(module, name))
    assert caplog.messages == [str(cost)]
    assert cost.what == cost.named(cost.what).what != ""


def test_all_are_seen() -> None:
    names = {name for _, name in analyses()}
    assert {"feature_drift", "linear_cka", "gather", "head_norms", "residual_size"} <= names
    assert "margin_sensitivity" in names and len(names) == 9


@pytest.mark.parametrize(("count", "size"), [(40, 8), (8, 40)])
@pytest.mark.parametrize("debiased", [False, True])
def test_the_arithmetic_of_cka_is_what_is_said(count: int, size: int, debiased: bool) -> None:
    x, y = torch.randn(2, count, size, generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        features.linear_cka(x, y, debiased=debiased)
    said = features.linear_cka_cost(count, size, debiased=debiased).flops
    assert counter.get_total_flops() == pytest.approx(said, rel=0.01)


def test_the_arithmetic_of_cosines_is_what_is_said() -> None:
    layer = nn.Linear(20, 6)
    with FlopCounterMode(display=False) as counter:
        head.head_norms(layer)
    assert counter.get_total_flops() == head.head_norms_cost(layer).flops

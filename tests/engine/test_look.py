"""What a recording depends on, seen or not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from roli_fast.engine.look import check_devices, look_at, places_of, settings
from roli_fast.errors import ArgumentError


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3))
        self.register_buffer("mean", torch.zeros(3))
        self.merged: torch.Tensor | None = torch.ones(2)
        self.scale, self.words, self.many = 0.5, "a", [1, 2]


def model() -> Any:
    return nn.Sequential(Part(), nn.ReLU())


def test_all_tensors_are_seen() -> None:
    made = model()
    seen = {id(tensor) for tensor in look_at(made).tensors}
    assert seen == {id(made[0].weight), id(made[0].mean), id(made[0].merged)}


SAME: dict[str, Callable[[Any], object]] = {
    "weights in place": lambda m: m[0].weight.data.mul_(2),
    "a gradient": lambda m: setattr(m[0].weight, "grad", torch.ones(2, 3)),
    "a list": lambda m: m[0].many.append(3),
    "frozen": lambda m: m[0].weight.requires_grad_(False),
}
OTHER: dict[str, Callable[[Any], object]] = {
    "weights elsewhere": lambda m: setattr(m[0], "weight", nn.Parameter(torch.ones(2, 3))),
    "another layout": lambda m: setattr(m[0].weight, "data", torch.ones(3, 2).T),
    "merged no more": lambda m: setattr(m[0], "merged", None),
    "a number": lambda m: setattr(m[0], "scale", 0.25),
    "a word": lambda m: setattr(m[0], "words", "b"),
    "a mode": lambda m: m.eval(),
    "a hook": lambda m: m[1].register_forward_hook(lambda *_: None),
    "a hook before": lambda m: m[1].register_forward_pre_hook(lambda *_: None),
    "a layer": lambda m: m.__setitem__(1, nn.Tanh()),
    "one more": lambda m: m.append(nn.Tanh()),
}


@pytest.mark.parametrize("change", SAME)
def test_the_same_recording(change: str) -> None:
    made = model()
    before = places_of(look_at(made))
    SAME[change](made)
    assert places_of(look_at(made)) == before


@pytest.mark.parametrize("change", OTHER)
def test_another_recording(change: str) -> None:
    made = model()
    before, held = places_of(look_at(made)), look_at(made)  # held: no address comes back
    OTHER[change](made)
    assert places_of(look_at(made)) != before and held


def test_settings_of_torch() -> None:
    device = torch.device("cpu")
    seen = [settings(device)]
    with torch.autocast("cpu", torch.bfloat16):
        seen.append(settings(device))
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        seen.append(settings(device))
    finally:
        torch.set_float32_matmul_precision(precision)
    assert len(set(seen)) == 3 and settings(device) == seen[0]


def test_one_device() -> None:
    tensors = [torch.ones(2), torch.ones(2)]
    check_devices(tensors, torch.device("cpu"))
    with pytest.raises(ArgumentError, match="expected all tensors on cpu, got meta"):
        check_devices([*tensors, torch.ones(2, device="meta")], torch.device("cpu"))

"""The head: initial values, and the file that carries it between stages."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import SMALL, images, tiny
from torch import nn

from roli_fast.errors import ArgumentError, CheckpointError
from roli_fast.models import Classifier, init_head, load_head, save_head

X = images(3, 3, 8, 8)


def without_bias(model: Classifier) -> Classifier:
    bare = nn.Linear(model.head.in_features, model.head.out_features, bias=False)
    with torch.no_grad():
        bare.weight.copy_(model.head.weight)
    model.set_submodule(model.head_name, bare)
    return model


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    ("init", "std", "bias"), [("small", 0.01, 0.0), ("kaiming", math.sqrt(2 / 50), -4.59512)]
)
def test_drawn_heads_have_their_deviation_on_every_architecture(
    name: str, init, std: float, bias: float
) -> None:
    """ "kaiming" is the wide head of the release, sqrt(2 / C) and bias -ln 99; five standard errors
    of 50 draws a feature. The seed decides, and the global state stays."""
    before, heads = torch.get_rng_state(), []
    for seed in (1, 1, 2):
        model = tiny(name, num_classes=50)
        init_head(model, init, seed=seed)
        heads.append(model.head.weight.detach().double())
    count = heads[0].numel()
    assert abs(heads[0].std() / std - 1) < 5 / math.sqrt(2 * count)
    assert abs(heads[0].mean() / std) < 5 / math.sqrt(count)
    assert model.head.bias.unique().tolist() == pytest.approx([bias])
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("init", ["zero", "kaiming", "default", "small"])
def test_only_the_head_changes(init) -> None:
    model, fresh, bare = tiny(), tiny(), without_bias(tiny())
    init_head(model, init)
    init_head(bare, init)
    assert torch.equal(model.eval().features(X), fresh.eval().features(X))
    assert torch.equal(model.head.weight, fresh.head.weight) == (init == "default")
    assert model.head.weight.requires_grad and model.head.weight.grad_fn is None
    assert bool(model(X).any()) == (init != "zero")
    with pytest.raises(ArgumentError, match="`init`: expected 'default' or .* got 'Kaiming'"):
        init_head(model, "Kaiming")  # pyright: ignore


def test_a_saved_head_comes_back(tmp_path: Path) -> None:
    first, again, path = tiny(), tiny(), tmp_path / "head.safetensors"
    init_head(first, "kaiming", seed=3)
    save_head(first, path)
    load_head(again, path)
    assert torch.equal(again.head.weight, first.head.weight)
    assert torch.equal(again.head.bias, first.head.bias) and again.head.weight.requires_grad
    assert set(load_file(path)) == {"weight", "bias"}
    # a foreign head has no fingerprint
    torch.save({"weight": torch.ones(5, 16), "bias": torch.ones(5)}, tmp_path / "head.pth")
    load_head(again, tmp_path / "head.pth")
    assert again.head.weight.unique().tolist() == [1.0]


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (lambda: tiny(num_classes=7), r"\(5, 16\).*\(7, 16\).*same number"),
        (lambda: without_bias(tiny()), r"bias \(5,\), weight \(5, 16\)"),
        # equal shapes, and the head would be noise
        (lambda: tiny(seed=1), "this very backbone.*vit_tiny"),
        (lambda: tiny(config={"mean": (0.4, 0.4, 0.4)}), "this very backbone"),
    ],
)
def test_a_head_that_does_not_fit(saved, message: str, tmp_path: Path) -> None:
    save_head(saved(), tmp_path / "head.safetensors")
    model = tiny()
    before = model.head.weight.clone()
    with pytest.raises(CheckpointError, match=f"`head`.*{message}"):
        load_head(model, tmp_path / "head.safetensors")
    assert torch.equal(model.head.weight, before)
    save_head(tiny("resnet18"), tmp_path / "head.safetensors")
    moved = tiny("resnet18").train()
    moved(images(2, 3, 32, 32))  # statistics belong to the backbone
    with pytest.raises(CheckpointError, match="this very backbone"):
        load_head(moved, tmp_path / "head.safetensors")

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


class TestInit:
    def test_kaiming_is_the_wide_head_of_the_release(self) -> None:
        """Standard deviation sqrt(2 / C) and bias -ln 99; 50 x 16 draws, five standard errors."""
        model = tiny(num_classes=50)
        init_head(model, "kaiming", seed=1)
        ratio = (model.head.weight.double() / math.sqrt(2 / 50)).detach()
        assert abs(ratio.std().item() - 1) < 5 / math.sqrt(2 * 800)
        assert abs(ratio.mean().item()) < 5 / math.sqrt(800)
        assert model.head.bias.unique().tolist() == pytest.approx([-4.59512])

    def test_zero_gives_equal_logits(self) -> None:
        model = tiny()
        init_head(model, "zero")
        assert not model(X).any()

    def test_small_is_small_on_every_architecture(self) -> None:
        """Standard deviation 0.01 and no bias; 50 x 16 draws, five standard errors."""
        for name in SMALL:
            model = tiny(name, num_classes=50)
            init_head(model, "small", seed=1)
            std = model.head.weight.double().std().item()
            count = model.head.weight.numel()
            assert abs(std / 0.01 - 1) < 5 / math.sqrt(2 * count), name
            assert not model.head.bias.any()

    def test_the_seed_decides_and_the_global_state_stays(self) -> None:
        before = torch.get_rng_state()
        weights = []
        for seed in (0, 0, 1):
            model = tiny()
            init_head(model, "kaiming", seed=seed)
            weights.append(model.head.weight)
        assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("init", ["zero", "kaiming", "default", "small"])
    def test_only_the_head_changes(self, init: str) -> None:
        model, fresh, bare = tiny(), tiny(), without_bias(tiny())
        init_head(model, init)  # pyright: ignore
        init_head(bare, init)  # pyright: ignore
        assert torch.equal(model.eval().features(X), fresh.eval().features(X))
        assert torch.equal(model.head.weight, fresh.head.weight) == (init == "default")
        assert model.head.weight.requires_grad and model.head.weight.grad_fn is None

    def test_another_name_is_refused(self) -> None:
        with pytest.raises(ArgumentError, match="`init`: expected 'default' or .* got 'Kaiming'"):
            init_head(tiny(), "Kaiming")  # pyright: ignore


class TestFile:
    @pytest.mark.parametrize("name", SMALL)
    def test_round_trip(self, name: str, tmp_path: Path) -> None:
        first, again, path = tiny(name), tiny(name), tmp_path / "head.safetensors"
        init_head(first, "kaiming", seed=3)
        save_head(first, path)
        load_head(again, path)
        assert torch.equal(again.head.weight, first.head.weight)
        assert torch.equal(again.head.bias, first.head.bias) and again.head.weight.requires_grad
        assert set(load_file(path)) == {"weight", "bias"}

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
    def test_a_head_that_does_not_fit(self, saved, message: str, tmp_path: Path) -> None:  # noqa: ANN001
        save_head(saved(), tmp_path / "head.safetensors")
        model = tiny()
        before = model.head.weight.clone()
        with pytest.raises(CheckpointError, match=f"`head`.*{message}"):
            load_head(model, tmp_path / "head.safetensors")
        assert torch.equal(model.head.weight, before)

    def test_batch_norm_statistics_belong_to_the_backbone(self, tmp_path: Path) -> None:
        save_head(tiny("resnet18"), tmp_path / "head.safetensors")
        model = tiny("resnet18").train()
        model(images(2, 3, 32, 32))
        with pytest.raises(CheckpointError, match="this very backbone"):
            load_head(model, tmp_path / "head.safetensors")

    def test_a_foreign_head_without_a_fingerprint(self, tmp_path: Path) -> None:
        state = {"weight": torch.ones(5, 16), "bias": torch.ones(5)}
        torch.save(state, tmp_path / "head.pth")
        model = tiny()
        load_head(model, tmp_path / "head.pth")
        assert model.head.weight.unique().tolist() == [1.0]

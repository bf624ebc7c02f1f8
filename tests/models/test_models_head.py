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
    parent, _, name = model.head_name.rpartition(".")
    setattr(model.get_submodule(parent), name, bare)
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

    def test_default_keeps_the_values(self) -> None:
        model, fresh = tiny(), tiny()
        init_head(model, "default")
        assert torch.equal(model.head.weight, fresh.head.weight) and model.head.weight.any()

    def test_the_seed_decides_and_the_global_state_stays(self) -> None:
        before = torch.get_rng_state()
        weights = []
        for seed in (0, 0, 1):
            model = tiny()
            init_head(model, "kaiming", seed=seed)
            weights.append(model.head.weight)
        assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("init", ["zero", "kaiming", "small"])
    def test_without_a_bias(self, init: str) -> None:
        model = without_bias(tiny())
        init_head(model, init)  # pyright: ignore
        assert model.head.bias is None

    @pytest.mark.parametrize("init", ["zero", "kaiming", "default", "small"])
    def test_the_backbone_and_the_trainable_set_stay(self, init: str) -> None:
        model, fresh = tiny(), tiny()
        init_head(model, init)  # pyright: ignore
        assert torch.equal(model.eval().features(X), fresh.eval().features(X))
        assert model.head.weight.requires_grad and model.head.weight.grad_fn is None

    @pytest.mark.parametrize("init", ["Kaiming", "robust-linear", "", None])
    def test_another_name_is_refused(self, init: str) -> None:
        with pytest.raises(
            ArgumentError, match="`init`: expected one of: default, small, zero, kaim"
        ):
            init_head(tiny(), init)  # pyright: ignore


class TestFile:
    @pytest.mark.parametrize("name", SMALL)
    def test_round_trip(self, name: str, tmp_path: Path) -> None:
        first, again = tiny(name), tiny(name)
        init_head(first, "kaiming", seed=3)
        save_head(first, tmp_path / "head.safetensors")
        load_head(again, tmp_path / "head.safetensors")
        assert torch.equal(again.head.weight, first.head.weight)
        assert torch.equal(again.head.bias, first.head.bias)
        assert again.head.weight.requires_grad

    def test_it_is_small_and_plain(self, tmp_path: Path) -> None:
        save_head(tiny(), tmp_path / "head.safetensors")
        shapes = {n: t.shape for n, t in load_file(tmp_path / "head.safetensors").items()}
        assert shapes == {"weight": (5, 16), "bias": (5,)}

    def test_without_a_bias(self, tmp_path: Path) -> None:
        path = tmp_path / "head.safetensors"
        save_head(without_bias(tiny()), path)
        load_head(without_bias(tiny()), path)
        with pytest.raises(CheckpointError, match=r"`head`.*bias \(5,\), weight \(5, 16\)"):
            load_head(tiny(), path)

    def test_other_classes(self, tmp_path: Path) -> None:
        save_head(tiny(num_classes=7), tmp_path / "head.safetensors")
        with pytest.raises(CheckpointError, match=r"`head`.*\(5, 16\).*\(7, 16\).*same number"):
            load_head(tiny(), tmp_path / "head.safetensors")

    def test_another_backbone(self, tmp_path: Path) -> None:
        """Equal shapes, other weights: the head would be noise."""
        save_head(tiny(seed=1), tmp_path / "head.safetensors")
        model = tiny(seed=2)
        before = model.head.weight.clone()
        with pytest.raises(CheckpointError, match="`head`.*this very backbone.*vit_tiny"):
            load_head(model, tmp_path / "head.safetensors")
        assert torch.equal(model.head.weight, before)

    def test_another_normalisation(self, tmp_path: Path) -> None:
        save_head(tiny(), tmp_path / "head.safetensors")
        model = tiny(config={"mean": (0.4, 0.4, 0.4)})
        with pytest.raises(CheckpointError, match="this very backbone"):
            load_head(model, tmp_path / "head.safetensors")

    def test_another_head_on_the_same_backbone_is_fine(self, tmp_path: Path) -> None:
        save_head(tiny(), tmp_path / "head.safetensors")
        model = tiny()
        init_head(model, "zero")
        load_head(model, tmp_path / "head.safetensors")
        assert model.head.weight.any()

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

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="existing"):
            load_head(tiny(), tmp_path / "none.safetensors")

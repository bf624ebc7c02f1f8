"""Backbones that people publish, in the forms of their files: all tensors arrive, logits are equal.

The forms are written down here from the publishers' own code, not from the package's tables.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_models import SMALL, images
from torch import Tensor, nn
from torchvision import models as torchvision_models
from torchvision.transforms.v2.functional import normalize

from roli_fast import zoo
from roli_fast.errors import ArgumentError, CheckpointError
from roli_fast.evaluate.config import ModelSource
from roli_fast.evaluate.prepare import open_model
from roli_fast.models import Model, create, load, restore, save_model
from roli_fast.models.layouts import to_timm

IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CLIP = [0.48145466, 0.4578275, 0.40821073]


def scrambled(network: nn.Module) -> Any:
    """None of its tensors is at its initial 0 or 1."""
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return network.eval()


def attacked(network: nn.Module, inner: str) -> dict[str, Any]:
    """A checkpoint of the robustness library: the network twice, a normaliser in front of each."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    state: dict[str, Tensor] = {}
    for place, front in (("module.", "normalizer"), ("module.attacker.", "normalize")):
        state |= {f"{place}{front}.new_mean": mean, f"{place}{front}.new_std": std}
        for name, tensor in network.state_dict().items():
            copy = tensor if place == "module." else torch.zeros_like(tensor)
            state[f"{place}model.{inner}{name}"] = copy
    return {"model": state, "epoch": 90, "optimizer": {"state": {}, "param_groups": []}}


class TestSalman:
    @pytest.mark.parametrize(
        ("name", "theirs", "inner"),
        [("resnet18", "resnet18", ""), ("mobilenetv2_100", "mobilenet_v2", "model.")],
    )
    def test_the_logits_are_theirs(
        self, tmp_path: Path, name: str, theirs: str, inner: str
    ) -> None:
        """torchvision's own networks, but the ResNets, stand in one more module there."""
        network = scrambled(getattr(torchvision_models, theirs)(num_classes=7))
        torch.save(attacked(network, inner), tmp_path / "w.ckpt")
        model = restore(Model(name, weights=str(tmp_path / "w.ckpt")))
        x = images(2, 3, 64, 64)
        assert torch.allclose(model(x), network(normalize(x, *IMAGENET)), rtol=1e-4, atol=1e-5)
        assert (model.card["mean"], model.card["std"]) == IMAGENET

    @pytest.mark.parametrize(
        ("name", "theirs", "options"),
        [
            ("densenet161", "densenet161", {}),
            ("resnext50_32x4d", "resnext50_32x4d", {}),
            ("wide_resnet50_2", "wide_resnet50_2", {}),
            ("wide_resnet50_2", "resnet50", {"base_width": 256}),  # its WideResNet-50-4
        ],
    )
    def test_full_size(self, name: str, theirs: str, options: dict[str, int]) -> None:
        width = {"width_per_group": 256} if options else {}
        with torch.device("meta"):
            state = getattr(torchvision_models, theirs)(**width).state_dict()
            own = timm.create_model(name, **options).state_dict()
        found = to_timm(state)[1]
        assert {k: t.shape for k, t in found.items()} == {k: t.shape for k, t in own.items()}


class Published(nn.Module):
    """A stem as in the paper's code: layers in a module called stem."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x)


class ChannelNorm(nn.Module):
    """(x - mean) / sqrt(var + 1e-6) over the channels of (B, C, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        shift = x - x.mean(1, keepdim=True)
        scaled = shift / (shift.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return scaled * self.weight[:, None, None] + self.bias[:, None, None]


def stem(steps: list[tuple[int, int, int]], *last: nn.Module) -> Published:
    layers: list[nn.Module] = []
    for inputs, outputs, stride in steps:
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), ChannelNorm(outputs), nn.GELU()]
    return Published(*layers, *last)


class TestConvStem:
    @pytest.mark.parametrize(
        ("name", "base", "first", "steps"),
        [
            ("convnext_tiny_convstem", "convnext_tiny", 96, [(3, 48, 2), (48, 96, 2)]),
            (
                "convnext_base_convstem",
                "convnext_base",
                128,
                [(3, 64, 2), (64, 96, 2), (96, 128, 1)],
            ),
        ],
    )
    def test_convnext(
        self, tmp_path: Path, name: str, base: str, first: int, steps: list[tuple[int, int, int]]
    ) -> None:
        options = {"depths": (1, 1, 1, 1), "dims": (first, 8, 8, 16)}
        theirs: Any = timm.create_model(base, num_classes=7, **options)
        theirs.stem = stem(steps)
        scrambled(theirs)
        state = {f"module.{key}": tensor for key, tensor in theirs.state_dict().items()}
        torch.save(state, tmp_path / "w.pt")
        model = restore(Model(name, options=options, weights=str(tmp_path / "w.pt")))
        x = images(2, 3, 64, 64)
        assert torch.allclose(model(x), theirs(x), rtol=1e-4, atol=1e-5)  # not normalised
        assert model.card["mean"] == [0, 0, 0] and model.card["std"] == [1, 1, 1]

    def test_vit(self, tmp_path: Path) -> None:
        options = {"img_size": 32, "depth": 1, "embed_dim": 32, "num_heads": 2}
        theirs: Any = timm.create_model("deit_small_patch16_224", num_classes=7, **options)
        widths = [(3, 48, 2), (48, 96, 2), (96, 192, 2), (192, 384, 2)]
        theirs.patch_embed.proj = stem(widths, nn.Conv2d(384, 32, 1))
        torch.save({"state_dict": scrambled(theirs).state_dict()}, tmp_path / "w.pt")
        config = Model("vit_small_convstem", options=options, weights=str(tmp_path / "w.pt"))
        x = images(2, 3, 32, 32)
        assert torch.allclose(
            restore(config)(x), theirs(normalize(x, *IMAGENET)), rtol=1e-4, atol=1e-5
        )


def open_clip_names(depth: int) -> dict[str, str]:
    """timm's names of a ViT -> open_clip's, inside the image tower."""
    names = {"cls_token": "class_embedding", "pos_embed": "positional_embedding"}
    names["patch_embed.proj.weight"] = "conv1.weight"
    for kind in ("weight", "bias"):
        names |= {f"norm_pre.{kind}": f"ln_pre.{kind}", f"norm.{kind}": f"ln_post.{kind}"}
        for index in range(depth):
            ours, theirs = f"blocks.{index}.", f"transformer.resblocks.{index}."
            names |= {
                f"{ours}norm1.{kind}": f"{theirs}ln_1.{kind}",
                f"{ours}norm2.{kind}": f"{theirs}ln_2.{kind}",
                f"{ours}attn.qkv.{kind}": f"{theirs}attn.in_proj_{kind}",
                f"{ours}attn.proj.{kind}": f"{theirs}attn.out_proj.{kind}",
                f"{ours}mlp.fc1.{kind}": f"{theirs}mlp.c_fc.{kind}",
                f"{ours}mlp.fc2.{kind}": f"{theirs}mlp.c_proj.{kind}",
            }
    return names


class TestOpenClip:
    NAME = "vit_base_patch16_clip_224"
    OPTIONS: dict[str, Any] = dict(  # noqa: RUF012
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2
    )

    def tower(self) -> tuple[nn.Module, dict[str, Tensor]]:
        """A network, and its tensors under open_clip's names, with a projection in its place."""
        network = scrambled(timm.create_model(self.NAME, num_classes=0, **self.OPTIONS))
        state, names = network.state_dict(), open_clip_names(2)
        assert set(state) == set(names)
        tower = {theirs: state[ours] for ours, theirs in names.items()}
        tower["class_embedding"] = tower["class_embedding"][0, 0]
        tower["positional_embedding"] = tower["positional_embedding"][0]
        return network, {**tower, "proj": torch.rand(16, 8)}

    @pytest.mark.parametrize("whole", [True, False])
    def test_the_image_tower_arrives_and_the_head_is_fresh(
        self, tmp_path: Path, whole: bool
    ) -> None:
        """`whole` as on the hub; else the tower alone, as RobustVLM's own files are."""
        network, tower = self.tower()
        state = tower
        if whole:
            state = {f"visual.{name}": tensor for name, tensor in tower.items()}
            state |= {"positional_embedding": torch.rand(77, 8), "logit_scale": torch.ones(())}
            state |= {"transformer.resblocks.0.ln_1.weight": torch.rand(8)}
            state |= {"token_embedding.weight": torch.rand(9, 8), "text_projection": torch.eye(8)}
        torch.save(state, tmp_path / "w.bin")
        config = Model(self.NAME, options=self.OPTIONS, weights=str(tmp_path / "w.bin"))
        model = create(config, num_classes=5).eval()
        assert model.head.out_features == 5 and model.card["mean"] == CLIP
        x = images(2, 3, 16, 16)
        seen = model.features(x)
        assert torch.allclose(seen, network(model.normalize(x)), rtol=1e-5, atol=1e-6)

    def test_convnext(self, tmp_path: Path) -> None:
        options: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 16)}
        network = scrambled(timm.create_model("convnext_base", num_classes=0, **options))
        state = {f"visual.trunk.{name}": t for name, t in network.state_dict().items()}
        state |= {"visual.head.proj.weight": torch.rand(4, 16), "logit_scale": torch.ones(())}
        torch.save(state, tmp_path / "w.bin")
        config = Model("convnext_base", options=options, weights=str(tmp_path / "w.bin"))
        model = create(config, num_classes=5).eval()
        x = images(2, 3, 64, 64)
        assert torch.allclose(model.features(x), network(model.normalize(x)), rtol=1e-5, atol=1e-6)
        assert model.card["mean"] == CLIP

    def test_another_network_is_refused(self, tmp_path: Path) -> None:
        torch.save(self.tower()[1], tmp_path / "w.bin")
        options = {**self.OPTIONS, "depth": 1}
        config = Model(self.NAME, options=options, weights=str(tmp_path / "w.bin"))
        with pytest.raises(CheckpointError, match="differences.*open_clip"):
            create(config, num_classes=5)


class TestOptionsOfTheZoo:
    @pytest.mark.parametrize(
        ("name", "own", "smaller"),
        [
            ("debenedetti_xcit_m12", {"embed_dim": 512}, {"depth": 1, "cls_attn_layers": 1}),
            ("mimir_vit_s_eps4", {"global_pool": "avg"}, SMALL["vit_tiny_patch16_224"]),
        ],
    )
    def test_a_file_gets_the_options_that_it_needs(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        own: dict[str, Any],
        smaller: dict[str, Any],
    ) -> None:
        monkeypatch.setenv("ROLI_FAST_HOME", str(tmp_path))
        entry = zoo.find(name)
        network = timm.create_model(entry.architecture, num_classes=7, **own, **smaller)
        path = tmp_path / "weights" / entry.file
        path.parent.mkdir()
        torch.save({"state_dict": scrambled(network).state_dict()}, path)
        config = Model(entry.architecture, weights=f"zoo:{name}", options=smaller)
        model = restore(config)
        x = images(2, 3, 32, 32) if "xcit" in name else images(2, 3, 8, 8)
        assert torch.allclose(model(x), network(x), rtol=1e-4, atol=1e-5)  # not normalised
        assert model.card["options"] == {**own, **smaller}


class TestTimmSources:
    """hf-hub:owner/name and local-dir:FOLDER: timm's own format, one of them without a network."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> tuple[str, Any]:
        network = scrambled(timm.create_model("resnet18", num_classes=7, **SMALL["resnet18"]))
        save_file(network.state_dict(), tmp_path / "model.safetensors")
        described = {
            "architecture": "resnet18",
            "num_classes": 7,
            "model_args": SMALL["resnet18"],
            "pretrained_cfg": {
                "mean": [0.1, 0.2, 0.3],
                "std": [0.4, 0.5, 0.6],
                "input_size": [3, 32, 32],
                "first_conv": "conv1",
                "classifier": "fc",
            },
        }
        (tmp_path / "config.json").write_text(json.dumps(described))
        return f"local-dir:{tmp_path}", network

    def test_a_folder(self, folder: tuple[str, Any], tmp_path: Path) -> None:
        source, network = folder
        config = Model(source, pretrained=True)
        model = create(config, num_classes=7, with_head=True).eval()
        x = images(2, 3, 32, 32)
        truth = network(normalize(x, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]))
        assert torch.allclose(model(x), truth, rtol=1e-5, atol=1e-6)
        assert create(config, num_classes=3).head.out_features == 3
        save_model(model, tmp_path / "own.safetensors")  # opens without the folder's name
        (tmp_path / "config.json").unlink()
        assert torch.equal(load(tmp_path / "own.safetensors")(x), model(x))

    def test_evaluation_opens_it(self, folder: tuple[str, Any]) -> None:
        opened = open_model(ModelSource(folder[0], pretrained=True), num_classes=9, image_size=32)
        assert opened.model(images(2, 3, 32, 32)).shape == (2, 7)  # type: ignore[operator]
        with pytest.raises(ArgumentError, match="a head of 7 for 3 classes"):
            create(Model(folder[0], pretrained=True), num_classes=3, with_head=True)

    def test_what_is_not_there(self) -> None:
        with pytest.raises(ArgumentError, match="`model.name`.*local-dir:/nothing/here"):
            create(Model("local-dir:/nothing/here"), num_classes=3)

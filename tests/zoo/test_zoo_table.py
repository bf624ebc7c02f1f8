"""The table against what timm and torchvision know of the same files."""

import re
from pathlib import Path

import pytest
import timm
import torch
from torchvision.models import ViT_B_16_Weights

import roli_fast.models  # noqa: F401 - registers its networks
from roli_fast.errors import ArgumentError
from roli_fast.zoo import NORMALIZATIONS, ZOO, Entry, find, folder, local_file, named


@pytest.mark.parametrize("entry", ZOO.values(), ids=ZOO)
def test_every_row_is_sound(entry: Entry) -> None:
    assert timm.is_model(entry.architecture)
    assert re.fullmatch(r"https://[^\s{}]+", entry.url)
    assert re.fullmatch(r"[\w.-]+\.(pth|ckpt|pt|bin|pth\.tar)", entry.file)
    assert re.fullmatch(r"[\w.-]+", entry.name) and find(entry.name) is entry
    assert re.fullmatch(r"([0-9a-f]{8}|[0-9a-f]{64})?", entry.sha256)
    assert re.fullmatch(r"clean|linf [\d.]+/255|l2 [\d.]+", entry.trained_for)
    assert entry.head == (entry.clean is not None) and entry.source
    assert 40 < (entry.clean or 50) < 90 and (entry.robust or 0) < (entry.clean or 1)
    assert (entry.mean, entry.std) in NORMALIZATIONS.values()


def test_the_options_build_the_networks_that_were_published() -> None:
    """Parameters in millions, as the papers give them."""
    names = {"salman_wide_resnet50_4_l2_eps3": 223, "debenedetti_xcit_m12": 46}
    for name, millions in {**names, "debenedetti_xcit_l12": 104}.items():
        entry = ZOO[name]
        with torch.device("meta"):
            network = timm.create_model(entry.architecture, **entry.options)
        assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions


def test_normalisations_that_contradict_timms() -> None:
    """The field's most repeated fault: these load without an error under timm's own."""
    own = {name: timm.get_pretrained_cfg(ZOO[name].architecture) for name in ZOO}
    found = {name.split("_")[0] for name, cfg in own.items() if cfg and cfg.mean != ZOO[name].mean}
    assert found >= {"ares", "debenedetti", "mimir", "torchvision", "fare"}
    assert ZOO["debenedetti_xcit_s12"].mean == (0, 0, 0)
    assert ZOO["singh_ViT-S-ConvStem"].mean != ZOO["singh_ViT-B-ConvStem"].mean == (0, 0, 0)


def test_torchvision_agrees() -> None:
    entry, theirs = ZOO["torchvision_vit_b_16"], ViT_B_16_Weights.IMAGENET1K_V1
    assert entry.url == theirs.url
    assert entry.clean == theirs.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    preset = theirs.transforms()
    assert (entry.mean, entry.std) == (tuple(preset.mean), tuple(preset.std))


@pytest.mark.parametrize("size", "tsb")
def test_timm_agrees_on_microsofts(size: str) -> None:
    entry = ZOO[f"microsoft_swin_{size}"]
    theirs = timm.get_pretrained_cfg(f"{entry.architecture}.ms_in1k")
    assert theirs is not None and entry.url == theirs.url
    assert (entry.mean, entry.std) == (theirs.mean, theirs.std)


class TestWhere:
    def test_the_folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("ROLI_FAST_HOME", str(tmp_path))
        assert folder() == tmp_path / "weights"
        monkeypatch.delenv("ROLI_FAST_HOME")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert folder() == tmp_path / "cache" / "roli_fast" / "weights"

    def test_what_a_text_stands_for(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("ROLI_FAST_HOME", str(tmp_path))
        assert len({entry.file for entry in ZOO.values()}) == len(ZOO)
        entry = ZOO["ares_swin_b"]
        assert named("zoo:ares_swin_b") is entry and named(f"any/where/{entry.file}") is entry
        assert named("my_own.pth") is None and named("") is None
        assert local_file("my_own.pth") == Path("my_own.pth")  # whoever reads it says it is missing
        target = tmp_path / "weights" / entry.file
        target.parent.mkdir()
        target.touch()
        assert local_file("zoo:ares_swin_b") == local_file(str(target)) == target

    def test_a_name_that_nothing_resembles(self) -> None:
        with pytest.raises(ArgumentError, match="expected a name of the zoo, .*zoo list"):
            find("qqq")

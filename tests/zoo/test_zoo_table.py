"""The table against what timm and torchvision know of the same files."""

import re
from pathlib import Path

import pytest
import timm
from torchvision.models import ViT_B_16_Weights

from roli_fast.errors import ArgumentError
from roli_fast.zoo import ZOO, Entry, find, folder, local_file, named


@pytest.mark.parametrize("entry", ZOO.values(), ids=ZOO)
def test_every_row_is_sound(entry: Entry) -> None:
    assert timm.is_model(entry.architecture)
    assert re.fullmatch(r"https://\S+/[\w.-]+\.pth", entry.url) and entry.file in entry.url
    assert re.fullmatch(r"[a-z0-9_]+", entry.name) and find(entry.name) is entry
    assert re.fullmatch(r"([0-9a-f]{8,64})?", entry.sha256)
    assert (entry.trained_for == "clean") == (entry.robust is None)
    assert 50 < entry.clean < 90 and (entry.robust or 0) < entry.clean and entry.source
    assert len(entry.mean) == len(entry.std) == 3


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
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "me"))
        assert folder() == tmp_path / "me" / ".cache" / "roli_fast" / "weights"

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
        with pytest.raises(ArgumentError, match="expected one of: ares_swin_b, .*zoo list"):
            find("qqq")

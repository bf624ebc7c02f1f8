"""Which normalisation is taken, and that the log says whose it is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_names import torchvision_vit
from tiny_models import SMALL, tiny

from roli_fast.errors import ArgumentError
from roli_fast.models import Classifier, Model, create, normalization, save_model

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
VIT = "vit_base_patch16_224"
ARES = "ARES_ViT_base_patch16_224_AT.pth"
OPTIONS = SMALL["vit_tiny_patch16_224"]


@pytest.fixture(autouse=True)
def say_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The log speaks once a process; the cache is this test's."""
    normalization._say.cache_clear()
    monkeypatch.setenv("ROLI_FAST_HOME", str(tmp_path / "home"))


def build(weights: Path | str, **options: Any) -> Classifier:
    name = options.pop("name", VIT)
    return create(Model(name, options=OPTIONS, weights=str(weights), **options), num_classes=5)


def of(model: Classifier) -> tuple[list[float], list[float]]:
    mean, std = (t.flatten().tolist() for t in (model.normalize.mean, model.normalize.std))
    assert (model.card["mean"], model.card["std"]) == (
        pytest.approx(mean, abs=1e-7),
        pytest.approx(std, abs=1e-7),
    )
    return model.card["mean"], model.card["std"]


def plain_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tiny().backbone.state_dict(), path)
    return path


def test_an_unknown_file_gets_timms_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert of(tiny("resnet18")) == IMAGENET and of(tiny()) == HALF
    model = build(plain_file(tmp_path / "w.pth"))
    assert of(model) == HALF
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "w.pth does not tell its normalisation" in record.msg
    build(tmp_path / "w.pth")
    assert len(caplog.records) == 1  # once, however often the model is built


def test_ares_vit_has_imagenets_where_timm_says_one_half(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = plain_file(tmp_path / "home" / "weights" / ARES)
    with caplog.at_level("INFO"):
        assert of(build("zoo:ares_vit_b")) == of(build(path)) == IMAGENET
    (message,) = caplog.messages
    assert message.startswith(f"{ARES}: normalisation from the zoo's ares_vit_b, mean 0.485, 0.456")
    assert "timm's vit_base_patch16_224 has another. It came with 74.7 % clean, 49.7 %" in message
    assert "`python -m roli_fast.zoo check ares_vit_b --data FOLDER`" in message
    assert build("zoo:ares_vit_b", name=f"{VIT}.augreg_in21k").config.weights
    with pytest.raises(ArgumentError, match=r"`model.name`: expected vit_base_patch16_224, got"):
        build("zoo:ares_vit_b", name="vit_tiny_patch16_224")


def test_torchvisions_names_are_enough(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state, pairs = tiny().backbone.state_dict(), torchvision_vit(2, published=True)
    torch.save({theirs: state[ours] for theirs, ours in pairs}, tmp_path / "w.pth")
    with caplog.at_level("INFO"):
        assert of(build(tmp_path / "w.pth")) == IMAGENET
    (message,) = caplog.messages
    assert message.startswith("w.pth: normalisation from torchvision's ViT names, mean 0.485")


def test_the_card_knows_better_than_the_file_name_and_the_user_best(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = tiny(config={"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)})
    path = tmp_path / ARES.replace(".pth", ".safetensors")
    save_model(first, path)
    assert of(build(path)) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    path = plain_file(tmp_path / ARES)
    ones = (1.0, 1.0, 1.0)
    assert of(build(path, std=ones)) == (IMAGENET[0], list(ones))
    assert of(build(path, mean=ones, std=ones)) == (list(ones), list(ones))
    assert f"{ARES}: normalised with mean 1, 1, 1 and std 1, 1, 1, as model.mean" in caplog.text
    assert "the zoo's ares_vit_b has mean 0.485" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        build(plain_file(tmp_path / "other.pth"), mean=ones, std=ones)
    assert not caplog.records  # nobody knows better


@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels_get_the_average(channels: int) -> None:
    options = {**SMALL["resnet18"], "in_chans": channels}
    model = create(Model("resnet18", options=options), num_classes=5)
    mean, std = of(model)
    assert mean == pytest.approx([sum(IMAGENET[0]) / 3] * channels)
    assert std == pytest.approx([sum(IMAGENET[1]) / 3] * channels)
    assert model(torch.rand(2, channels, 16, 16)).shape == (2, 5)
    own = (0.1,) * channels
    assert of(create(Model("resnet18", options=options, mean=own), num_classes=5))[0] == list(own)

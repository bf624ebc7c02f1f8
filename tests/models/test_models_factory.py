"""Building classifiers: pixels in, reproducible, and errors that say what to change."""

import time
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from tiny_models import SIZES, SMALL, images, tiny
from torch import nn
from torch.nn.functional import interpolate

from roli_fast.errors import ArgumentError
from roli_fast.models import Classifier, Model, Normalize, create
from roli_fast.models.classifier import find_head
from roli_fast.peft import METHODS, apply

MEAN, STD = (0.1, 0.5, 0.75), (0.25, 0.5, 2.0)
VIT = "vit_tiny_patch16_224"


@pytest.mark.parametrize("name", SMALL)
def test_it_is_timm_behind_a_normalisation(name: str) -> None:
    """Manual: channel by channel in fp64, then the bare network, which timm alone builds. The
    features are what the head sees."""
    model = tiny(name, config={"mean": MEAN, "std": STD}, image_size=SIZES[name])
    assert all(module.training for module in model.modules())  # after a look at the size
    plain = timm.create_model(name, num_classes=5, **SMALL[name]).eval()
    plain.load_state_dict(model.eval().backbone.state_dict())
    x = images(2, 3, SIZES[name], SIZES[name])
    channels = [(x[:, c].double() - MEAN[c]) / STD[c] for c in range(3)]
    truth = plain(torch.stack(channels, dim=1).float())
    assert torch.allclose(model(x), truth, rtol=1e-4, atol=1e-5)
    features = model.features(x)
    assert features.shape == (2, model.head.in_features)
    assert torch.allclose(model.head(features), model(x), atol=1e-6)
    assert model.get_submodule(model.head_name) is model.head
    path, head = find_head(model.backbone)  # of the plain network too
    assert head is model.head and f"backbone.{path}" == model.head_name
    assert model.double()(x.double()).dtype == torch.float64


def test_the_seed_decides_and_no_global_one_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.manual_seed would also reseed the generators of all GPUs, which nothing restores."""

    def reseed(_seed: int) -> None:
        pytest.fail("a global seed was set")

    monkeypatch.setattr(torch, "manual_seed", reseed)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseed)
    before = torch.get_rng_state()
    first, again, other = (tiny(seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_resizing_happens_inside() -> None:
    model, x = tiny(VIT, config={"resize": 8}, image_size=6).eval(), images(2, 3, 6, 6)
    big = interpolate(x, size=(8, 8), mode="bilinear", align_corners=False)
    assert torch.allclose(model(x), tiny(VIT).eval()(big), atol=1e-6)
    assert torch.equal(model(big), tiny(VIT).eval()(big))


def test_the_hint_of_a_wrong_image_size_works() -> None:
    config = Model(VIT, options=SMALL[VIT])
    with pytest.raises(ArgumentError, match=r"`image_size`.*12x12.*model\.resize.*img_size"):
        create(config, num_classes=5, image_size=12)
    x = images(2, 3, 12, 12)
    rebuilt = replace(config, options={**SMALL[VIT], "img_size": 12})
    for works in (replace(config, resize=8), rebuilt):
        assert create(works, num_classes=5, image_size=12)(x).shape == (2, 5)


class TwoHeads(nn.Module):
    """Adds the largest answer of a second head, as VOLO does."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.aux = inner, nn.Linear(16, 5)
        self.get_classifier, self.forward_head = inner.get_classifier, inner.forward_head
        self.forward_features = inner.forward_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.forward_features(x)
        return self.forward_head(maps) + 0.5 * self.aux(maps[:, 1:]).amax(1)


def test_logits_that_are_not_those_of_the_head_are_refused_where_features_are_asked_for() -> None:
    plain, x = tiny(VIT), images(2, 3, 8, 8)
    model = Classifier(TwoHeads(plain.backbone), plain.config, MEAN, STD)
    assert model(x).shape == (2, 5)  # a classifier like any other
    with pytest.raises(ArgumentError, match=r"one linear head, got .*not head\(features\)"):
        model.features(x)
    with pytest.raises(ArgumentError, match=r"`model\.name`.*not head"):
        apply(model, METHODS["linear"]())
    assert all(module.training for module in model.modules())


CONVOLUTION = dict(layers=(1, 1, 1, 1), channels=(8, 8, 8, 8), stem_chs=8)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet81", {}, r"name`: expected a timm arch.*got 'resnet81'.*Similar: .*resnet18"),
        ("deit_tiny_distilled_patch16_224", SMALL[VIT], "name`: .*one linear head.*with tuple"),
        ("resnetv2_50", CONVOLUTION, "name`: .*one linear head, got resnetv2_50 with Conv2d"),
        (VIT, {"depht": 1}, rf"options`: .*timm's {VIT} can.*got .*unexpected keyword .*'depht'"),
        ("resnet18", {"num_classes": 3}, r"options\.num_classes`: expected nothing, got 3\. The "),
        ("resnet18", {"img_size": 32}, r"options`: .*leave img_size out; data\.image_size"),
    ],
)
def test_what_does_not_work_is_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=rf"`model\.{message}"):
        create(Model(name, options=options), num_classes=5).head  # noqa: B018


def test_impossible_requests() -> None:
    with pytest.raises(ArgumentError, match="`num_classes`: expected an integer >= 1"):
        tiny(num_classes=0)
    with pytest.raises(ArgumentError, match="`pretrained`.*Choose one"):
        Model(weights="x.pth", pretrained=True)


def test_weights_without_a_network_fail_within_seconds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """The hub's client tries again for a minute; nobody listens at port 9."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    began = time.perf_counter()
    with pytest.raises(
        ArgumentError, match=r"`model\.pretrained`.*no answer from http://127.*file as"
    ):
        create(Model("test_vit.r160_in1k", pretrained=True), num_classes=1000)
    assert time.perf_counter() - began < 20 and not constants.HF_HUB_OFFLINE


def test_normalising_by_hand_and_what_does_not_fit() -> None:
    x = torch.tensor([[[[0.6]], [[0.5]], [[0.75]]]])
    assert Normalize(MEAN, STD)(x).flatten().tolist() == [2.0, 0.0, 0.0]
    assert not Normalize(MEAN, STD).state_dict()  # it adds nothing to a file
    with pytest.raises(ArgumentError, match="`std`: expected 3 numbers > 0"):
        Normalize(MEAN, (1.0, 1.0, 0.0))
    for shape in ((2, 1, 4, 4), (2, 48)):  # one channel must not broadcast
        with pytest.raises(ArgumentError, match=r"`x`: expected images \(B, 3, H, W\)"):
            Normalize(MEAN, STD)(torch.zeros(shape))

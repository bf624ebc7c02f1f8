"""Files of ARES, Microsoft, torchvision and older timm: every tensor arrives, nothing else does."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from foreign_names import Pairs, microsoft_buffers, microsoft_swin, torchvision_vit
from timm.models.swin_transformer import PatchMerging
from timm.models.vision_transformer import checkpoint_filter_fn
from tiny_models import SMALL, images
from torch import Tensor, nn
from torchvision.models import VisionTransformer, vit_b_16
from torchvision.transforms.v2.functional import normalize

from roli_fast.errors import CheckpointError
from roli_fast.models import Classifier, Model, create, load_backbone
from roli_fast.models.layouts import SWIN, TORCHVISION_VIT, to_timm

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
VIT = "vit_base_patch16_224"
SWIN_B = "swin_base_patch4_window7_224"
DEPTHS = (2, 1, 1)
SWIN_OPTIONS: dict[str, Any] = dict(
    img_size=16, patch_size=2, window_size=4, embed_dim=8, depths=DEPTHS, num_heads=(1, 2, 2)
)
OPTIONS = {VIT: SMALL["vit_tiny_patch16_224"], SWIN_B: SWIN_OPTIONS}


def build(name: str, weights: Path | None = None, seed: int = 0, **more: Any) -> Classifier:
    options = {**OPTIONS[name], **more}
    config = Model(name, options=options, weights=str(weights) if weights else None)
    return create(config, num_classes=5, seed=seed).eval()


def scrambled(model: Any, seed: int = 1) -> Any:
    """The network with none of its tensors at its initial 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def under_old_names(model: Classifier, pairs: Pairs) -> dict[str, Tensor]:
    """The backbone's tensors under the names of `pairs`, which must cover all of them."""
    state = model.backbone.state_dict()
    assert sorted(ours for _, ours in pairs) == sorted(state)
    return {theirs: state[ours].clone() for theirs, ours in pairs}


def assert_arrived(model: Classifier, state: dict[str, Tensor], pairs: Pairs) -> None:
    """Every tensor of the file is in the model, bit for bit, apart from the head."""
    own = model.backbone.state_dict()
    assert len(own) == len(pairs)
    for theirs, ours in pairs:
        assert torch.equal(own[ours], state[theirs]) != theirs.startswith("head"), theirs


@pytest.mark.parametrize("wrapper", [None, "model"])
def test_every_tensor_of_a_swin_arrives(tmp_path: Path, wrapper: str | None) -> None:
    model, pairs = scrambled(build(SWIN_B)), microsoft_swin(DEPTHS)
    state = under_old_names(model, pairs)
    saved = state | (microsoft_buffers(DEPTHS, window=4, windows=4) if wrapper else {})
    torch.save({wrapper: saved} if wrapper else saved, tmp_path / "w.pth")
    again = build(SWIN_B, tmp_path / "w.pth", seed=2)
    assert_arrived(again, state, pairs)
    load_backbone(again, tmp_path / "w.pth", with_head=True)
    x = images(2, 3, 16, 16)
    assert torch.equal(again(x), model(x))


def test_a_swin_of_another_image_size_keeps_the_windows(tmp_path: Path) -> None:
    """attn_mask belongs to the image size and is computed anew."""
    two: dict[str, Any] = dict(depths=(2, 1), num_heads=(1, 2))
    state = under_old_names(scrambled(build(SWIN_B, **two)), microsoft_swin((2, 1)))
    torch.save(state | microsoft_buffers((2, 1), window=4, windows=4), tmp_path / "w.pth")
    model = build(SWIN_B, tmp_path / "w.pth", img_size=32, **two)
    assert_arrived(model, state, microsoft_swin((2, 1)))
    assert model(images(1, 3, 32, 32)).shape == (1, 5)


def test_patches_are_merged_in_microsofts_order() -> None:
    """Theirs concatenates rows and columns (even, even), (odd, even), (even, odd), (odd, odd) of
    the map; a row of the reduction that picks one channel shows which comes where."""
    merge = PatchMerging(1, 4, norm_layer=nn.Identity)  # pyright: ignore
    with torch.no_grad():
        merge.reduction.weight.copy_(torch.eye(4))
    x = torch.arange(16.0).view(1, 4, 4, 1)
    assert merge(x)[0, 0, 0].tolist() == [x[0, r, c, 0] for c in (0, 1) for r in (0, 1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("layers.0.downsample.norm.bias", "missing layers.1.downsample.norm.bias"),
        ("+head.fc.weight", "one set of Swin names"),
    ],
)
def test_one_tensor_too_few_or_too_many(tmp_path: Path, change: str, message: str) -> None:
    state = under_old_names(build(SWIN_B), microsoft_swin(DEPTHS))
    if change.startswith("+"):
        state[change[1:]] = torch.zeros(3)
    else:
        del state[change]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=message):
        build(SWIN_B, tmp_path / "w.pth")


def torchvisions(**options: Any) -> VisionTransformer:
    return scrambled(VisionTransformer(8, 4, 2, 2, 16, 64, num_classes=5, **options), seed=3)


@pytest.mark.parametrize("published", [True, False])
def test_the_logits_are_torchvisions(tmp_path: Path, published: bool) -> None:
    """`published`: under the names of the file of 2021."""
    model, state = torchvisions(), {}
    new, old = (torchvision_vit(2, published=p) for p in (False, published))
    assert set(model.state_dict()) == {theirs for theirs, _ in new}
    for (name, _), (saved, _) in zip(new, old, strict=True):
        state[saved] = model.state_dict()[name]
    torch.save(state, tmp_path / "w.pth")
    ours = build(VIT, tmp_path / "w.pth")
    assert_arrived(ours, state, old)
    load_backbone(ours, tmp_path / "w.pth", with_head=True)
    x = images(4, 3, 8, 8)
    truth = model(normalize(x, MEAN, STD))
    assert torch.allclose(ours(x), truth, rtol=1e-5, atol=1e-5)
    truth = model.double()(normalize(x.double(), MEAN, STD))
    assert torch.allclose(ours.double()(x.double()), truth, rtol=1e-6, atol=1e-6)
    assert truth.std() > 0.1


@pytest.mark.parametrize("name", ["swin_large_patch4_window7_224", VIT])
def test_names_and_shapes_of_the_published_sizes(name: str) -> None:
    with torch.device("meta"):
        own = timm.create_model(name).state_dict()
        pairs = microsoft_swin((2, 2, 18, 2))
        theirs = vit_b_16().state_dict() if name == VIT else {old: own[new] for old, new in pairs}
    layout, found = to_timm(theirs)
    assert layout is (TORCHVISION_VIT if name == VIT else SWIN)
    assert {key: t.shape for key, t in found.items()} == {key: t.shape for key, t in own.items()}


@pytest.mark.parametrize(
    ("img_size", "tokens"),
    [
        (4, {}),
        ((8, 16), {"class_token": False, "global_pool": "avg"}),
        (16, {"reg_tokens": 2}),
    ],
)
def test_positions_of_another_image_size_are_resampled_by_timm(
    tmp_path: Path, img_size: Any, tokens: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    first: Any = build(VIT, seed=1, **tokens)
    torch.save(first.backbone.state_dict(), tmp_path / "w.pth")
    with caplog.at_level("INFO", "roli_fast.models"):
        again: Any = build(VIT, tmp_path / "w.pth", seed=2, img_size=img_size, **tokens)
    assert f"pos_embed resampled from {tuple(first.backbone.pos_embed.shape)}" in caplog.text
    plain: Any = build(VIT, seed=3, img_size=img_size, **tokens).backbone
    truth = checkpoint_filter_fn(first.backbone.state_dict(), plain)
    assert torch.equal(again.backbone.pos_embed, truth["pos_embed"])
    assert again.backbone.pos_embed.shape != first.backbone.pos_embed.shape


def test_what_cannot_be_taken_is_refused(tmp_path: Path) -> None:
    """Positions of another width; torchvision's hidden layer before the head."""
    other = {**build(VIT).backbone.state_dict(), "pos_embed": torch.zeros(1, 5, 8)}
    hidden = torchvisions(representation_size=7).state_dict()
    for state, words in (
        (other, "1 differences: pos_embed has shape"),
        (hidden, r"2 differences: unknown heads.pre_logits.weight"),
    ):
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match=words):
            build(VIT, tmp_path / "w.pth")

"""Weight files: strict, safe, readable by plain timm; those of others as they publish them."""

import argparse
import json
import math
import pickle
import warnings
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import SIZES, SMALL, images, tiny
from torch import Tensor, nn

from roli_fast import models
from roli_fast.errors import CheckpointError
from roli_fast.models import Model, create, load_backbone, read_state_dict, save_model
from roli_fast.models.weights import fingerprint, read_card

VIT = "vit_tiny_patch16_224"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "vit.safetensors"
    save_model(tiny(seed=1), path, classes=tuple("abcde"))
    return path


def load(path: Path | str) -> Any:
    """The tiny ViT with the file's backbone and a head of its own."""
    return create(Model(VIT, options=SMALL[VIT], weights=str(path)), num_classes=5, image_size=8)


def refused(path: Path, content: Any, words: str) -> None:
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=f"`weights`.*{words}"):
        load(path)


@pytest.mark.parametrize("name", SMALL)
def test_round_trip(name: str, tmp_path: Path) -> None:
    """`create` takes all but the head, `load_backbone` the head too, and plain timm all."""
    first, again, path = tiny(name, seed=1), tiny(name, seed=2), tmp_path / "w.safetensors"
    x = images(4, 3, SIZES[name], SIZES[name])
    first.train()(x)  # BatchNorm's statistics travel too
    save_model(first.eval(), path)
    config = Model(name, options=SMALL[name], weights=str(path))
    other = create(config, num_classes=9, seed=2).eval()
    assert torch.equal(other.features(x), first.features(x)) and other(x).shape == (4, 9)
    assert torch.equal(other.head.weight, tiny(name, num_classes=9, seed=2).head.weight)
    load_backbone(again, path, with_head=True)
    assert torch.equal(again.eval()(x), first(x))
    plain = timm.create_model(name, num_classes=5, **SMALL[name])
    plain.load_state_dict(load_file(path), strict=True)
    assert fingerprint(plain.state_dict()) == fingerprint(first.backbone.state_dict())


def test_the_card_carries_the_normalisation_and_the_classes(tmp_path: Path) -> None:
    first = tiny(config={"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}, seed=1)
    path = tmp_path / "w.safetensors"
    save_model(first, path, classes=("cat", "dog"))
    with safe_open(path, framework="pt") as file:
        card = json.loads(file.metadata()["roli_fast"])  # readable by anyone
    assert card == read_card(path) and card["classes"] == ["cat", "dog"]
    assert (card["name"], card["options"]) == (VIT, SMALL[VIT])
    assert load(path).card["mean"] == [0.1, 0.2, 0.3]
    config = Model(VIT, options=SMALL[VIT], weights=str(path), std=(1.0, 1.0, 1.0))
    own = create(config, num_classes=5)
    assert own.card["mean"] == [0.1, 0.2, 0.3] and own.card["std"] == [1.0, 1.0, 1.0]
    save_file({"a": torch.zeros(1)}, path)
    assert read_card(path) == {}


def own(seed: int = 1) -> dict[str, Tensor]:
    return dict(tiny(seed=seed).backbone.state_dict())


def under(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in own().items()}


def buffers(mean: str, std: str, shape: tuple[int, ...] = (3, 1, 1)) -> dict[str, Tensor]:
    return {mean: torch.tensor(MEAN).view(shape), std: torch.tensor(STD).view(shape)}


ROBUSTNESS = {
    **under("module.model."),
    **under("module.attacker.model."),
    **buffers("module.normalizer.new_mean", "module.normalizer.new_std"),
    **buffers("module.attacker.normalize.new_mean", "module.attacker.normalize.new_std"),
}
BESIDE = {
    "args": argparse.Namespace(lr=0.1, aug=["a"], out=Path("x")),
    "numbers": {"acc": np.float64(0.5), "n": np.int64(3), "done": np.bool_(True)},
    "ordered": OrderedDict(a=1),
    "history": defaultdict(list, loss=[1.0]),
}
PUBLISHED: dict[str, tuple[Any, bool]] = {
    "compiled in DDP": (under("module._orig_mod."), False),
    "model": ({"state_dict": under("model."), **BESIDE}, False),
    "net": ({"net": under("module."), "acc": 57.1, "epoch": 90}, False),
    "model_state_dict": ({"model_state_dict": under("module.")}, False),
    "ema alone": ({"state_dict_ema": under("module.")}, False),
    "of two": ({"state_dict": own(), "state_dict_ema": own(2)}, False),
    "teacher": ({"teacher": under("backbone.")}, False),
    "averaged": ({**under("module."), "n_averaged": torch.tensor(3)}, False),
    "mu and sigma": ({**under("model."), **buffers("mu", "sigma", (1, 3, 1, 1))}, True),
    "beside the network": ({**own(), **buffers("mean", "std")}, True),
    "Sequential": ({**under("1."), **buffers("0.mean", "0.std")}, True),
    "named": ({**under("model."), **buffers("normalize.mean", "normalize.std", (3,))}, True),
    "robustness": ({"model": ROBUSTNESS}, True),
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("zipped", [True, False])  # False: torch's old format
def test_the_network_is_found(
    name: str, zipped: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content, normalised = PUBLISHED[name]
    path = tmp_path / ("w.pth" if zipped else "w.bin")
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert fingerprint(read_state_dict(path)) == fingerprint(own())
    told = "holds state_dict and state_dict_ema; taking state_dict" in caplog.text
    assert told == (name == "of two")
    model = load(path)
    assert model.card["mean"] == list(MEAN if normalised else (0.5, 0.5, 0.5))
    assert model.card["std"] == list(STD if normalised else (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (under("student.trunk."), "begin with 'student.trunk.': take that off"),
        ({**own(), **buffers("a.mu", "a.sigma"), "mean": torch.zeros(3), "std": torch.ones(3)},
         "one normalisation"),
        ({**own(), "mean": torch.full((3,), 120.0), "std": torch.full((3,), 60.0)}, r"in \[0, 1\]"),
        ({"model": {"a": "text"}}, "expected a state dict"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_named(content: Any, words: str, tmp_path: Path) -> None:
    refused(tmp_path / "w.pth", content, words)


def test_every_difference_is_listed_and_nothing_is_changed(tmp_path: Path) -> None:
    path, model = tmp_path / "w.pth", tiny(seed=2)
    state = {**own(), "extra": torch.zeros(2), "pos_embed": torch.zeros(1, 7, 16)}
    del state["cls_token"]
    torch.save(state, path)
    before = fingerprint(model.state_dict())
    with pytest.raises(CheckpointError) as caught:
        load_backbone(model, path)
    assert fingerprint(model.state_dict()) == before
    text = str(caught.value)
    assert "with 3 differences: missing cls_token; unknown extra; " in text
    assert "pos_embed has shape (1, 7, 16), the model's is (1, 5, 16)" in text
    assert str(path) in text and "model.options" in text
    save_model(tiny("resnet18"), tmp_path / "r.safetensors")
    with pytest.raises(CheckpointError, match=r"differences: missing .*; \.\.\.") as caught:
        load(tmp_path / "r.safetensors")
    text = str(caught.value)
    assert text.count("missing ") == text.count("unknown ") == 3
    assert "It was read as timm's names (it has none of: torchvision's" in text
    assert "It was saved with model.name resnet18 and model.options {" in text


@pytest.mark.parametrize("shape", [None, (1000, 16)])
def test_only_the_head_may_differ(tmp_path: Path, shape: tuple[int, int] | None) -> None:
    state = {name: tensor for name, tensor in own().items() if not name.startswith("head")}
    state |= {"head.weight": torch.zeros(shape), "head.bias": torch.zeros(1000)} if shape else {}
    torch.save(state, tmp_path / "w.pth")
    load(tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="head"):
        load_backbone(tiny(), tmp_path / "w.pth", with_head=True)


def test_a_number_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    state = own()
    state["head.weight"][:] = torch.nan  # it is left aside
    torch.save(state, tmp_path / "w.pth")
    load(tmp_path / "w.pth")
    state["blocks.1.mlp.fc1.weight"][0, :2] = torch.tensor([torch.nan, torch.inf])
    refused(tmp_path / "w.pth", state, r"no NaN and no infinity, got 2 in blocks\.1\.mlp\.fc1")


class Dangerous:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    target, path = tmp_path / "ran", tmp_path / "w.pth"
    refused(path, {"a": torch.zeros(1), "b": Dangerous(target)}, "")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Dangerous(target)))
    with pytest.raises(CheckpointError, match="`weights`"):
        load(tmp_path / "plain.pth")
    assert not target.exists()
    torch.load(path, weights_only=False)  # the trap does work
    assert target.exists()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_what_is_no_whole_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    save_model(tiny(), path) if suffix == "safetensors" else torch.save(own(), path)
    whole = path.read_bytes()
    cut = [whole[: int(share * len(whole))] for share in (0.0, 0.001, 0.3, 0.99)]
    for content in (*cut, bytes(range(256)) * 20):
        path.write_bytes(content)
        words = rf"`weights`: expected a complete file of tensors.*{path.name}' \({len(content)} "
        with pytest.raises(CheckpointError, match=words):
            load(path)
    path.unlink()
    (tmp_path / f"folder.{suffix}").mkdir()
    for name in (path.name, f"folder.{suffix}"):
        with pytest.raises(CheckpointError, match=f"`weights`: expected an existing.*{name}"):
            load(tmp_path / name)


def test_what_a_file_is_instead_is_named(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and its files are there
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "s.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "m.pth")
    torch.save({"state_dict": own(), "o": slice(3)}, tmp_path / "o.pth")
    (tmp_path / "p.pth").write_bytes(pickle.dumps([1, 2])[:4])
    for suffix in ("pth", "safetensors"):
        (tmp_path / f"h.{suffix}").write_bytes(b"\n<!DOCTYPE html><html>Log in</html>")
        (tmp_path / f"l.{suffix}").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid")
    for file, words in {
        "s.pth": "a TorchScript archive.*state_dict",
        "m.pth": r"it is whole, and holds torch\.nn\.modules\.linear\.Linear.*state dict alone",
        "o.pth": "it is whole, and holds .*slice",
        "p.pth": "`weights`",
        "h.pth": "an HTML page.*download the file itself",
        "h.safetensors": "an HTML page",
        "l.pth": "a pointer of git-LFS.*git lfs pull",
        "l.safetensors": "a pointer of git-LFS",
    }.items():
        with pytest.raises(CheckpointError, match=words) as caught:
            read_state_dict(tmp_path / file)
        assert "weights_only" not in str(caught.value) and "arbitrary" not in str(caught.value)


@pytest.mark.parametrize("text", ["{not json", "[]"])
def test_a_damaged_card(saved: Path, text: str) -> None:
    save_file(load_file(saved), saved, metadata={"roli_fast": text})
    with pytest.raises(CheckpointError, match=f"`weights`.*{saved.name}"):
        load(saved)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "no_such_network"),
        ("options", {"depth": 1.5}),
        ("std", [0.0] * 3),
        ("tuning", [{"name": "lora", "rank": 99}]),
    ],
)
def test_a_card_of_another_version(saved: Path, field: str, value: Any) -> None:
    card = read_card(saved) | {field: value}
    save_file(load_file(saved), saved, metadata={"roli_fast": json.dumps(card)})
    with pytest.raises(CheckpointError, match=saved.name):
        models.load(saved)


def test_the_fingerprint_sees_names_types_shapes_and_values() -> None:
    a = torch.arange(4.0)
    states = [
        *({"a": a}, {"b": a}, {"a": a.double()}, {"a": a.view(2, 2)}, {"a": a + 1e-6}, {}),
        *({"a": torch.zeros(4)}, {"a": torch.zeros(4, dtype=torch.int32)}),
        *({"a": a, "n": torch.tensor(0)}, {"a": a, "n": torch.tensor(False)}),
    ]
    assert len({fingerprint(state) for state in states}) == len(states)
    # order and layout do not count
    b, c = torch.randn(2, 3, 4, 5), torch.randn(3).bfloat16()
    rows = b.contiguous(memory_format=torch.channels_last)
    assert fingerprint({"b": b, "c": c}) == fingerprint({"c": c, "b": rows})


def ramp(table: Tensor) -> Tensor:
    """-1 to 1 along the width of a table of offsets; zero for what stands behind the grid."""
    side = math.isqrt(len(table))
    row = torch.linspace(-1, 1, side).repeat(side)
    return torch.cat([row, row.new_zeros(len(table) - side**2)])[:, None].expand(table.shape)


@pytest.mark.parametrize(
    ("name", "small", "large", "block"),
    [
        ("swin_tiny_patch4_window7_224", {"window_size": 2, "img_size": 16},
         {"window_size": 4, "img_size": 32}, "layers.0.blocks.0"),
        ("beit_base_patch16_224", {"img_size": 32}, {"img_size": 64}, "blocks.0"),
    ],
)  # fmt: skip
def test_tables_of_positions_are_resampled(
    name: str, small: Any, large: Any, block: str, tmp_path: Path
) -> None:
    """A ramp stays a ramp: rising, odd, and from about -1 to 1."""
    table = f"backbone.{block}.attn.relative_position_bias_table"
    shared = SMALL.get(name) or {"depth": 1, "embed_dim": 24, "num_heads": 3}
    first = create(Model(name, options={**shared, **small}), num_classes=5)
    old = first.get_parameter(table)
    old.data.copy_(ramp(old))
    torch.save(first.backbone.state_dict(), tmp_path / "w.pth")
    config = Model(name, options={**shared, **large}, weights=str(tmp_path / "w.pth"))
    again = create(config, num_classes=5, image_size=large["img_size"])
    new = again.get_parameter(table)
    assert old.shape != new.shape and old.shape[1] == new.shape[1]
    grid = ramp(new)[:, 0]
    places = grid.unique()
    means = [new[: len(grid)][grid[: len(new)] == place].mean(0)[0].item() for place in places]
    assert means == sorted(means) and means[0] == pytest.approx(-means[-1], abs=1e-3)
    assert means[-1] == pytest.approx(1, abs=0.3) and max(map(abs, means)) < 1.3

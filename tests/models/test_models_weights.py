"""Weight files: strict, safe, and readable by plain timm."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import SIZES, SMALL, images, tiny
from torch import Tensor

from roli_fast import models
from roli_fast.errors import CheckpointError
from roli_fast.models import Model, create, load_backbone, read_state_dict, save_model
from roli_fast.models.weights import fingerprint, read_card

VIT = "vit_tiny_patch16_224"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "vit.safetensors"
    save_model(tiny(seed=1), path, classes=tuple("abcde"))
    return path


def load(path: Path | str) -> Any:
    """The tiny ViT with the file's backbone and a head of its own."""
    return create(Model(VIT, options=SMALL[VIT], weights=str(path)), num_classes=5)


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


@pytest.mark.parametrize(
    ("suffix", "key", "prefix", "options"),
    [
        ("pth", None, "", {}),
        ("pt", "state_dict", "", {}),
        ("bin", "model", "", {}),
        ("pth", "model_state_dict", "module.", {}),
        ("pth", None, "", {"_use_new_zipfile_serialization": False}),  # torch's old format
    ],
)
def test_pickled_state_dicts(
    tmp_path: Path, suffix: str, key: str | None, prefix: str, options: dict[str, Any]
) -> None:
    path, model = tmp_path / f"w.{suffix}", tiny(seed=1).eval()
    state = {prefix + name: tensor for name, tensor in model.backbone.state_dict().items()}
    torch.save({key: state, "epoch": 3} if key else state, path, **options)
    assert fingerprint(read_state_dict(str(path))) == fingerprint(model.backbone.state_dict())
    x = images(2, 3, 8, 8)
    assert torch.equal(load(path).eval().features(x), model.features(x))


class TestMismatch:
    def write(self, tmp_path: Path, **changes: Tensor | None) -> Path:
        """The tiny ViT's tensors with some replaced, added or (None) removed."""
        state = {**tiny(seed=1).backbone.state_dict(), **changes}
        path = tmp_path / "w.pth"
        torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, path)
        return path

    def test_every_difference_is_listed_and_nothing_is_changed(self, tmp_path: Path) -> None:
        changes = {"cls_token": None, "extra": torch.zeros(2), "pos_embed": torch.zeros(1, 7, 16)}
        path, model = self.write(tmp_path, **changes), tiny(seed=2)
        before = fingerprint(model.state_dict())
        with pytest.raises(CheckpointError) as caught:
            load_backbone(model, path)
        assert fingerprint(model.state_dict()) == before
        text = str(caught.value)
        assert "with 3 differences: missing cls_token; unknown extra; " in text
        assert "pos_embed has shape (1, 7, 16), the model's is (1, 5, 16)" in text
        assert str(path) in text and "model.options" in text

    @pytest.mark.parametrize(
        "changes",
        [
            {"head.weight": None, "head.bias": None},
            {"head.weight": torch.zeros(1000, 16), "head.bias": torch.zeros(1000)},
            {"head.other": torch.zeros(3)},
        ],
    )
    def test_only_the_head_may_differ(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        path = self.write(tmp_path, **changes)
        load(path)
        with pytest.raises(CheckpointError, match="head"):
            load_backbone(tiny(), path, with_head=True)

    def test_another_architecture_shows_both_sides(self, tmp_path: Path) -> None:
        save_model(tiny("resnet18"), tmp_path / "w.safetensors")
        with pytest.raises(CheckpointError, match=r"differences: missing .*; \.\.\.") as caught:
            load(tmp_path / "w.safetensors")
        assert str(caught.value).count("missing ") == str(caught.value).count("unknown ") == 3
        assert "missing cls_token; missing pos_embed" in str(caught.value)
        assert "It was read as timm's names (it has none of: torchvision's" in str(caught.value)
        assert "It was saved with model.name resnet18 and model.options {" in str(caught.value)


class Dangerous:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


class TestDamage:
    def test_a_pickle_with_code_is_not_run(self, tmp_path: Path) -> None:
        target, path = tmp_path / "ran", tmp_path / "w.pth"
        torch.save({"a": torch.zeros(1), "b": Dangerous(target)}, path)
        plain = tmp_path / "plain.pth"
        plain.write_bytes(pickle.dumps(Dangerous(target)))
        for file in (path, plain):
            with pytest.raises(CheckpointError, match="`weights`"):
                load(file)
        assert not target.exists()
        torch.load(path, weights_only=False)  # the trap does work
        assert target.exists()

    @pytest.mark.parametrize("suffix", ["safetensors", "pth"])
    def test_what_is_no_whole_file(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"w.{suffix}"
        if suffix == "pth":
            torch.save(tiny().backbone.state_dict(), path)
        else:
            save_model(tiny(), path)
        whole = path.read_bytes()
        cut = [whole[: int(share * len(whole))] for share in (0.0, 0.001, 0.3, 0.99)]
        for content in (*cut, bytes(range(256)) * 20):
            path.write_bytes(content)
            words = (
                rf"`weights`: expected a complete file of tensors.*{path.name}' \({len(content)} "
            )
            with pytest.raises(CheckpointError, match=words):
                load(path)
        path.unlink()
        (tmp_path / f"folder.{suffix}").mkdir()
        for name in (path.name, f"folder.{suffix}"):
            with pytest.raises(CheckpointError, match=f"`weights`: expected an existing.*{name}"):
                load(tmp_path / name)

    @pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"model": {"a": "text"}}])
    def test_other_contents(self, tmp_path: Path, content: Any) -> None:
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match="expected a state dict"):
            load(tmp_path / "w.pth")

    @pytest.mark.parametrize("text", ["{not json", "[]", "[" * 100_000])
    def test_a_damaged_card(self, saved: Path, text: str) -> None:
        save_file(load_file(saved), saved, metadata={"roli_fast": text})
        with pytest.raises(CheckpointError, match=f"`weights`.*{saved.name}"):
            load(saved)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            *(("name", "no_such_network"), ("options", {"depth": 1.5}), ("num_classes", 0)),
            *(("mean", None), ("std", [0.0] * 3), ("tuning", [3]), ("tuning", [{"name": []}])),
            *(("tuning", [{"name": "lora", "x": 1}]), ("tuning", [{"name": "lora", "rank": 99}])),
        ],
    )
    def test_a_card_of_another_version(self, saved: Path, field: str, value: Any) -> None:
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

"""Weight files: strict, safe, and readable by plain timm."""

import json
import pickle
import re
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
    save_model(tiny(seed=1), path, classes=("a", "b", "c", "d", "e"))
    return path


def load(path: Path | str, **options: Any) -> Any:
    """The tiny ViT with the file's backbone and a head of its own."""
    config = Model(VIT, options=SMALL[VIT], weights=str(path))
    return create(config, num_classes=options.pop("num_classes", 5), **options)


@pytest.mark.parametrize("name", SMALL)
class TestRoundTrip:
    def test_create_takes_all_but_the_head(self, name: str, tmp_path: Path) -> None:
        first, path = tiny(name, seed=1).eval(), tmp_path / "w.safetensors"
        save_model(first, path)
        config = Model(name, options=SMALL[name], weights=str(path))
        again = create(config, num_classes=9, seed=2).eval()
        x = images(2, 3, SIZES[name], SIZES[name])
        assert torch.equal(again.features(x), first.features(x))
        assert again(x).shape == (2, 9)
        assert torch.equal(again.head.weight, tiny(name, num_classes=9, seed=2).head.weight)

    def test_with_the_head_the_logits_are_equal(self, name: str, tmp_path: Path) -> None:
        first, again = tiny(name, seed=1).eval(), tiny(name, seed=2).eval()
        save_model(first, tmp_path / "w.safetensors")
        load_backbone(again, tmp_path / "w.safetensors", with_head=True)
        x = images(2, 3, SIZES[name], SIZES[name])
        assert torch.equal(again(x), first(x))

    def test_plain_timm_loads_it_strictly(self, name: str, tmp_path: Path) -> None:
        model = tiny(name, seed=1)
        save_model(model, tmp_path / "w.safetensors")
        plain = timm.create_model(name, num_classes=5, **SMALL[name])
        plain.load_state_dict(load_file(tmp_path / "w.safetensors"), strict=True)
        assert fingerprint(plain.state_dict()) == fingerprint(model.backbone.state_dict())


def test_the_card_carries_the_normalisation_and_the_classes(tmp_path: Path) -> None:
    first = tiny(config={"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}, seed=1)
    path = tmp_path / "w.safetensors"
    save_model(first, path, classes=("cat", "dog"))
    card = read_card(path)
    assert card["classes"] == ["cat", "dog"] and card["name"] == VIT
    assert card["options"] == SMALL[VIT]
    assert load(path).card["mean"] == [0.1, 0.2, 0.3]
    own = create(
        Model(VIT, options=SMALL[VIT], weights=str(path), std=(1.0, 1.0, 1.0)), num_classes=5
    )
    assert own.card["mean"] == [0.1, 0.2, 0.3] and own.card["std"] == [1.0, 1.0, 1.0]


def test_other_files_have_no_card(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "w.pth")
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    assert read_card(tmp_path / "w.pth") == read_card(tmp_path / "w.safetensors") == {}


def test_trained_batch_norm_statistics_travel(tmp_path: Path) -> None:
    model = tiny("resnet18").train()
    model(images(4, 3, 32, 32))
    save_model(model, tmp_path / "w.safetensors")
    again = tiny("resnet18", seed=5)
    load_backbone(again, tmp_path / "w.safetensors")
    mean = "backbone.bn1.running_mean"
    assert torch.equal(again.state_dict()[mean], model.state_dict()[mean])
    assert again.state_dict()[mean].any()


class TestFormats:
    def state(self) -> dict[str, Tensor]:
        return dict(tiny(seed=1).backbone.state_dict())

    def check(self, path: Path) -> None:
        assert fingerprint(read_state_dict(path)) == fingerprint(self.state())
        x = images(2, 3, 8, 8)
        assert torch.equal(load(path).eval().features(x), tiny(seed=1).eval().features(x))

    @pytest.mark.parametrize("suffix", ["pth", "pt", "bin"])
    @pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict"])
    def test_pickled_state_dicts(self, tmp_path: Path, suffix: str, key: str | None) -> None:
        path = tmp_path / f"w.{suffix}"
        torch.save({key: self.state(), "epoch": 3} if key else self.state(), path)
        self.check(path)

    def test_the_prefix_of_data_parallel(self, tmp_path: Path) -> None:
        path = tmp_path / "w.pth"
        torch.save({"state_dict": {f"module.{n}": t for n, t in self.state().items()}}, path)
        self.check(path)

    def test_the_old_format_of_torch(self, tmp_path: Path) -> None:
        path = tmp_path / "w.pth"
        torch.save(self.state(), path, _use_new_zipfile_serialization=False)
        self.check(path)

    def test_a_path_as_text(self, saved: Path) -> None:
        assert read_state_dict(str(saved)).keys() == self.state().keys()


class TestMismatch:
    def write(self, tmp_path: Path, **changes: Tensor | None) -> Path:
        """The tiny ViT's tensors with some replaced, added or (None) removed."""
        state = {**tiny(seed=1).backbone.state_dict(), **changes}
        path = tmp_path / "w.pth"
        torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, path)
        return path

    def test_every_difference_is_listed(self, tmp_path: Path) -> None:
        path = self.write(
            tmp_path,
            cls_token=None,
            extra=torch.zeros(2),
            pos_embed=torch.zeros(1, 7, 16),
        )
        with pytest.raises(CheckpointError) as caught:
            load(path)
        text = str(caught.value)
        assert "with 3 differences: missing cls_token; unknown extra; " in text
        assert "pos_embed has shape (1, 7, 16), the model's is (1, 5, 16)" in text
        assert str(path) in text and "model.options" in text

    def test_a_refused_file_changes_nothing(self, tmp_path: Path) -> None:
        model = tiny(seed=2)
        before = fingerprint(model.state_dict())
        with pytest.raises(CheckpointError):
            load_backbone(model, self.write(tmp_path, cls_token=None))
        assert fingerprint(model.state_dict()) == before

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
        assert "; unknown bn1.bias; unknown bn1" in str(caught.value)
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

    @pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
    @pytest.mark.parametrize("suffix", ["safetensors", "pth"])
    def test_a_truncated_file(self, tmp_path: Path, suffix: str, share: float) -> None:
        path = tmp_path / f"w.{suffix}"
        if suffix == "pth":
            torch.save(tiny().backbone.state_dict(), path)
        else:
            save_model(tiny(), path)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        size = path.stat().st_size
        with pytest.raises(CheckpointError, match=rf"`weights`.*{path.name}' \({size} bytes\)"):
            load(path)

    @pytest.mark.parametrize("suffix", ["safetensors", "pth"])
    def test_noise(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"w.{suffix}"
        path.write_bytes(bytes(range(256)) * 20)
        with pytest.raises(CheckpointError, match="a complete file of tensors"):
            load(path)

    @pytest.mark.parametrize("suffix", ["safetensors", "pth"])
    def test_missing_files_and_folders(self, tmp_path: Path, suffix: str) -> None:
        (tmp_path / f"folder.{suffix}").mkdir()
        for name in (f"none.{suffix}", f"folder.{suffix}"):
            with pytest.raises(CheckpointError, match=f"`weights`: expected an existing.*{name}"):
                load(tmp_path / name)

    @pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"model": {"a": "text"}}, 3])
    def test_other_contents(self, tmp_path: Path, content: Any) -> None:
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match="expected a state dict"):
            load(tmp_path / "w.pth")

    @pytest.mark.parametrize("text", ["{not json", "[]", "3", "[" * 100_000, "[" + "1" * 5000])
    def test_a_damaged_card(self, saved: Path, text: str) -> None:
        save_file(load_file(saved), saved, metadata={"roli_fast": text})
        with pytest.raises(CheckpointError, match=f"`weights`.*{saved.name}"):
            load(saved)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            *(("name", 3), ("name", "no_such_network"), ("options", [1]), ("options", None)),
            *(("options", {"depth": 10**9}), ("options", {"depth": 1.5}), ("num_classes", "x")),
            *(("num_classes", 0), ("num_classes", True), ("resize", -1), ("resize", 1.5)),
            *(("mean", None), ("mean", [float("nan")] * 3), ("mean", ["0"] * 3), ("std", [0.5])),
            *(("std", [0.0] * 3), ("std", [1e999] * 3), ("classes", 5), ("classes", [1] * 3)),
            *(("tuning", 5), ("tuning", [3]), ("tuning", [{"name": "lora", "alpha": 10**400}])),
            *(("tuning", [{"name": "adapter", "reduction": 1.5}]), ("tuning", [{"name": []}])),
            *(
                ("tuning", [{"name": "lora", "rank": 10**9}]),
                ("tuning", [{"name": "lora", "x": 1}]),
            ),
        ],
    )
    def test_a_card_with_a_wrong_field(self, saved: Path, field: str, value: Any) -> None:
        with safe_open(saved, framework="pt") as file:
            card = json.loads(file.metadata()["roli_fast"]) | {field: value}
        save_file(load_file(saved), saved, metadata={"roli_fast": json.dumps(card)})
        with pytest.raises(CheckpointError, match=saved.name) as caught:
            models.load(saved)
        assert re.search(f"{field}|alpha|{re.escape(repr(value))}", str(caught.value))


class TestFingerprint:
    def test_it_sees_names_types_shapes_and_values(self) -> None:
        a = torch.arange(4.0)
        states = [
            {"a": a},
            {"b": a},
            {"a": a.double()},
            {"a": a.view(2, 2)},
            {"a": a + 1e-6},
            {"a": torch.zeros(4)},
            {"a": torch.zeros(4, dtype=torch.int32)},
            {"a": a, "n": torch.tensor(0)},
            {"a": a, "n": torch.tensor(False)},
            {},
        ]
        assert len({fingerprint(state) for state in states}) == len(states)

    def test_order_and_layout_do_not_count(self) -> None:
        a, b = torch.randn(2, 3, 4, 5), torch.randn(3).bfloat16()
        rows = a.contiguous(memory_format=torch.channels_last)
        assert fingerprint({"a": a, "b": b}) == fingerprint({"b": b, "a": rows})


def test_the_metadata_is_readable_by_anyone(saved: Path) -> None:
    with safe_open(saved, framework="pt") as file:
        assert json.loads(file.metadata()["roli_fast"])["classes"] == list("abcde")

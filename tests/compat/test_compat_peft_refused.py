"""What cannot be saved or loaded in PEFT's format is refused, and changes nothing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft_cases import (
    VIT,
    stirred,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import same, tiny
from torch import Tensor

from roli_fast.compat.peft import load, save
from roli_fast.errors import ArgumentError, CheckpointError
from roli_fast.models import Classifier, init_head
from roli_fast.peft import Adapter, apply


class TestRefused:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        save(stirred(), tmp_path / "adapter")
        return tmp_path / "adapter"

    def change(self, folder: Path, **fields: Any) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    def change_tensors(self, folder: Path, change: Any, *, card: bool) -> None:
        path = folder / "adapter_model.safetensors"
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        state = load_file(path)
        change(state)
        save_file(state, path, metadata=metadata if card else None)

    def check(self, folder: Path, message: str, model: Classifier | None = None) -> None:
        """Refused with the message, and the model is as it was."""
        model = model or tiny()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises((CheckpointError, ArgumentError), match=message):
            load(model, folder)
        assert same(dict(model.state_dict()), before)
        assert all(parameter.requires_grad for parameter in model.parameters())

    @pytest.mark.parametrize(
        "other", [dict(seed=1), dict(config={"mean": (0.4, 0.4, 0.4)})], ids=["weights", "mean"]
    )
    def test_another_backbone(self, folder: Path, other: dict[str, Any]) -> None:
        self.check(
            folder,
            rf"`model`.*{VIT} with sha256 [0-9a-f]{{64}}, got {VIT} with [0-9a-f]{{64}}",
            tiny(**other),
        )

    def test_another_head_is_no_other_backbone(self, folder: Path) -> None:
        model = tiny()
        init_head(model, "zero")
        load(model, folder)
        assert model.head.weight.any()

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            (dict(use_rslora=True), "`use_rslora`: expected it unset.*got True"),
            (dict(use_dora=True), "`use_dora`"),
            (dict(fan_in_fan_out=True), "`fan_in_fan_out`"),
            (dict(bias="lora_only"), "`bias`: expected 'none', got 'lora_only'"),
            (dict(lora_bias=True), "`lora_bias`"),
            (dict(init_lora_weights="pissa_niter_4"), "`init_lora_weights`.*'pissa_niter_4'"),
            (dict(something_new={"a": 1}), "`something_new`.*{'a': 1}"),
            (dict(peft_type="IA3"), "`peft_type`: expected LORA, got 'IA3'"),
            (dict(r=0), "`r`: expected a number > 0, got 0"),
            (dict(r="4"), "`r`: .*'4'"),
            (dict(lora_alpha=None), "`lora_alpha`.*None"),
            (dict(lora_alpha=7), r"`lora_alpha`: expected 1.5 times the rank.*got 7 for rank 4"),
            (dict(lora_dropout=1.0), "`lora_dropout`"),
            (dict(rank_pattern={"blocks.0.*": 4}), "`rank_pattern`.*no regular expr"),
            (dict(alpha_pattern=[1]), "`alpha_pattern`"),
            (dict(r=5), r"`blocks.0.attn.qkv`: expected A and B of shapes \(5, 16\)"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_fields(self, folder: Path, fields: dict[str, Any], message: str) -> None:
        self.change(folder, **fields)
        self.check(folder, message)

    @pytest.mark.parametrize("name", ["blocks.7.attn.qkv", "norm", "head"])
    def test_unknown_modules(self, folder: Path, name: str) -> None:
        def rename(state: dict[str, Tensor]) -> None:
            for key in [key for key in state if "blocks.1" in key]:
                state[key.replace("blocks.1.attn.qkv", name)] = state.pop(key)

        self.change_tensors(folder, rename, card=False)
        self.check(folder, f"`target_modules`.*linear layers of {VIT}.*'{name}'.*end in: fc1, fc2")

    def test_rank_above_the_width(self, folder: Path) -> None:
        def widen(state: dict[str, Tensor]) -> None:
            for key in [key for key in state if "lora" in key]:
                shape = (17, 16) if "lora_A" in key else (48, 17)
                state[key] = torch.ones(shape)

        self.change(folder, r=17)
        self.change_tensors(folder, widen, card=False)
        self.check(folder, "`rank`: expected at most 16, the width of .*qkv, got 17")

    def test_other_trained_modules(self, folder: Path) -> None:
        key = "base_model.model.norm.weight"
        self.change_tensors(folder, lambda s: s.update({key: torch.ones(16)}), card=False)
        self.check(folder, "`modules_to_save`: .*head.weight, head.bias.*norm.weight")

    def test_half_a_pair(self, folder: Path) -> None:
        key = "base_model.model.blocks.1.attn.qkv.lora_B.weight"
        self.change_tensors(folder, lambda s: s.pop(key), card=False)
        self.check(folder, r"blocks.1.attn.qkv.lora_A")

    def test_a_layer_short_of_the_card(self, folder: Path) -> None:
        def drop(state: dict[str, Tensor]) -> None:
            for key in [key for key in state if "blocks.1" in key]:
                state.pop(key)

        self.change_tensors(folder, drop, card=True)
        self.check(folder, "`target_modules`: expected blocks.1.attn.qkv")

    def test_something_outside_the_slices(self, folder: Path) -> None:
        key = "base_model.model.blocks.1.attn.qkv.lora_B.weight"
        self.change_tensors(folder, lambda s: s[key][20].fill_(1), card=True)
        self.check(
            folder,
            r"`blocks.1.attn.qkv.lora_B.weight`: expected rank 2 in each of the rows \(\(0, 16\)",
        )

    def test_other_classes(self, folder: Path) -> None:
        self.check(folder, r"`num_classes`.*\(7, 16\).*\(5, 16\)", tiny(num_classes=7))

    def test_a_model_with_lora(self, folder: Path) -> None:
        model = stirred()
        model.requires_grad_(True)
        self.check(folder, "`model`: expected a classifier without LoRA", model)

    def test_missing_and_damaged_files(self, folder: Path, tmp_path: Path) -> None:
        self.check(tmp_path, "`folder`: expected one with adapter_config.json")
        tensors = folder / "adapter_model.safetensors"
        tensors.write_bytes(tensors.read_bytes()[:-8])
        self.check(folder, "complete file of tensors")
        tensors.unlink()
        self.check(folder, "`weights`: expected an existing .safetensors")
        (folder / "adapter_config.json").write_text("{")
        self.check(folder, "`adapter_config.json`: expected JSON")
        (folder / "adapter_config.json").write_text("[]")
        self.check(folder, "`peft_type`")

    @pytest.mark.parametrize("value", ["1" + "0" * 400, "1" * 5000, "NaN", "1e999", "[" * 100_000])
    def test_numbers_that_are_none(self, folder: Path, value: str) -> None:
        path = folder / "adapter_config.json"
        text = re.sub(r'"lora_alpha": [\d.]+', f'"lora_alpha": {value}', path.read_text())
        assert value in text
        path.write_text(text)
        self.check(folder, "`adapter_config.json`: .*adapter_config.json'")

    def test_saving(self, tmp_path: Path) -> None:
        with pytest.raises(
            ArgumentError, match="`model`.*LoRA and nothing else, got one with none"
        ):
            save(tiny(), tmp_path)
        model = stirred()
        (tmp_path / "file").touch()
        with pytest.raises(ArgumentError, match="`folder`: expected a folder"):
            save(model, tmp_path / "file")
        apply(model, Adapter(4))
        with pytest.raises(ArgumentError, match="got one with lora, adapter"):
            save(model, tmp_path)

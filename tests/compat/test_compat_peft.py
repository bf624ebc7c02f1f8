"""LoRA in PEFT's format: PEFT itself opens ours and we open PEFT's, with equal logits."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from peft_cases import (
    HEADS,
    NETWORKS,
    SWIN,
    VIT,
    close,
    differs,
    network,
    normalised,
    pictures,
    stirred,
    theirs,
)
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import SMALL, same, tiny
from torch import nn

from roli_fast.compat.lora_blocks import join_b, split_b
from roli_fast.compat.peft import load, save
from roli_fast.models import Model as ModelConfig
from roli_fast.models import create, save_model
from roli_fast.models import load as load_model
from roli_fast.peft import LoRA, LoraLinear, apply, merge

TARGETS = [("q", "v"), ("k",), ("qkv",), ("q", "v", "mlp.fc1", "proj")]


def test_blocks_by_hand() -> None:
    """Two slices of rank 1 on rows 0 and 2 of three."""
    b = torch.tensor([[5.0], [7.0]])
    whole = torch.tensor([[5.0, 0.0], [0.0, 0.0], [0.0, 7.0]])
    assert torch.equal(join_b(b, ((0, 1), (2, 3)), 3), whole)
    again = split_b(whole, ((0, 1), (2, 3)))
    assert again is not None and torch.equal(again, b)
    for row, column in ((0, 1), (1, 0), (1, 1), (2, 0)):
        other = whole.clone()
        other[row, column] = 1e-30
        assert split_b(other, ((0, 1), (2, 3))) is None


@pytest.mark.parametrize("targets", TARGETS, ids="-".join)
@pytest.mark.parametrize("name", NETWORKS)
class TestOursInPeft:
    def test_logits_and_merged_weights(
        self, hf: Any, name: str, targets: tuple[str, ...], tmp_path: Path
    ) -> None:
        model, x = stirred(name, targets=targets), pictures(name)
        expected = model(x)
        assert differs(expected, tiny(name).eval()(x))
        save(model, tmp_path)
        adapted = hf.PeftModel.from_pretrained(network(name), tmp_path).eval()
        close(adapted(normalised(model, x)), expected)
        plain = adapted.merge_and_unload()
        close(plain(normalised(model, x)), expected)
        ours = merge(model).backbone.state_dict()
        assert plain.state_dict().keys() == ours.keys()
        for key, tensor in plain.state_dict().items():
            torch.testing.assert_close(ours[key], tensor, rtol=1e-6, atol=1e-6)

    def test_peft_writes_it_again_and_we_read_that(
        self, hf: Any, name: str, targets: tuple[str, ...], tmp_path: Path
    ) -> None:
        """PEFT drops our card: whole layers then, the same function."""
        model, x = stirred(name, targets=targets), pictures(name)
        save(model, tmp_path / "ours")
        adapted = hf.PeftModel.from_pretrained(network(name), tmp_path / "ours")
        adapted.save_pretrained(tmp_path / "theirs")
        again = tiny(name).eval()
        load(again, tmp_path / "theirs")
        close(again(x), model(x))


@pytest.mark.parametrize("name", NETWORKS)
class TestTheirsInOurs:
    @pytest.mark.parametrize(
        "options",
        [
            dict(target_modules=["qkv"]),
            dict(target_modules=["mlp.fc1", "attn.proj"], lora_dropout=0.5, lora_alpha=2.5),
            dict(target_modules=r".*blocks\.1.*fc2", modules_to_save=None),
            dict(target_modules=["qkv", "fc1"], rank_pattern={"fc1": 2}, alpha_pattern={"qkv": 1}),
        ],
        ids=["qkv", "mlp", "regex", "patterns"],
    )
    def test_logits(self, hf: Any, name: str, options: dict[str, Any], tmp_path: Path) -> None:
        adapted, model, x = theirs(hf, name, **options), tiny(name).eval(), pictures(name)
        if "modules_to_save" in options:  # then the file has no head and the model's stays
            head = adapted.get_base_model().get_submodule(HEADS[name])
            model.head.load_state_dict(head.state_dict())
        before = model(x)
        adapted.save_pretrained(tmp_path)
        names = load(model, tmp_path)
        expected = adapted(normalised(model, x))
        assert differs(expected, before)
        close(model(x), expected)
        assert names == [*dict.fromkeys(names)]
        assert set(names) == {n for n, p in model.named_parameters() if p.requires_grad}
        close(
            merge(model).backbone(normalised(model, x)),
            adapted.merge_and_unload()(normalised(model, x)),
        )

    def test_its_words_become_ours(self, hf: Any, name: str, tmp_path: Path) -> None:
        theirs(hf, name, lora_dropout=0.5).save_pretrained(tmp_path)
        model = tiny(name)
        load(model, tmp_path)
        tree = model.card["tuning"][0]
        assert (tree["rank"], tree["alpha"], tree["dropout"]) == (3, 7, 0.5)
        assert tree["targets"] == ("qkv",)

    def test_the_whole_classifier_head_is_ours_too(
        self, hf: Any, name: str, tmp_path: Path
    ) -> None:
        """Swin's head is a module around the linear layer; "head" takes all of it."""
        adapted = theirs(hf, name, modules_to_save=["head"])
        adapted.save_pretrained(tmp_path)
        model = tiny(name).eval()
        load(model, tmp_path)
        close(model(pictures(name)), adapted(normalised(model, pictures(name))))


@pytest.mark.parametrize("targets", TARGETS, ids="-".join)
@pytest.mark.parametrize("name", NETWORKS)
def test_ours_in_ours(name: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    """Bit for bit, slices are slices again, and the trained model can be saved as ever."""
    model, again = stirred(name, targets=targets), tiny(name).eval()
    save(model, tmp_path)
    names = load(again, tmp_path)
    assert same(dict(again.state_dict()), dict(model.state_dict()))
    assert again.card["tuning"] == model.card["tuning"]
    assert names == apply(tiny(name), LoRA(rank=2, targets=targets))
    assert set(names) == {n for n, p in again.named_parameters() if p.requires_grad}
    x = pictures(name)
    assert torch.equal(again(x), model(x))
    save_model(again, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    assert same(dict(loaded.state_dict()), dict(model.state_dict()))
    with torch.no_grad():  # what requires grad differs, and with it the kernels that are taken
        assert torch.equal(loaded(x), model(x))


def test_two_loras_on_different_layers(tmp_path: Path) -> None:
    model, again = tiny(), tiny()
    apply(model, LoRA(rank=2, alpha=3))
    apply(model, LoRA(rank=4, alpha=1, targets=("fc1",)))
    save(model, tmp_path)
    names = load(again, tmp_path)
    assert same(dict(again.state_dict()), dict(model.state_dict()))
    assert len(names) == 2 * 2 * 2 + 2
    assert all(again.get_parameter(name).requires_grad for name in names)


def test_the_files(tmp_path: Path) -> None:
    """Numbers by hand: q and v of rank 2 and alpha 3 are rank 4 and alpha 6."""
    save(stirred(), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 6)
    assert config["lora_dropout"] == 0.25 and config["modules_to_save"] == ["head"]
    assert config["target_modules"] == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    state = load_file(tmp_path / "adapter_model.safetensors")
    prefix = "base_model.model."
    b = state[f"{prefix}blocks.1.attn.qkv.lora_B.weight"]
    assert state[f"{prefix}blocks.1.attn.qkv.lora_A.weight"].shape == (4, 16)
    assert b.shape == (48, 4) and not b[16:32].any() and not b[:16, 2:].any()
    assert not b[32:, :2].any() and b[:16, :2].all() and b[32:, 2:].all()
    assert {n for n in state if "lora" not in n} == {f"{prefix}head.weight", f"{prefix}head.bias"}
    with safe_open(tmp_path / "adapter_model.safetensors", framework="pt") as file:
        card = json.loads(file.metadata()["roli_fast_adapter"])
    assert len(card["backbone"]) == 64 and card["name"] == VIT


def test_a_network_that_reads_past_the_layer_is_told(
    hf: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Swin V2: what the warning says is so, with timm's switch and without."""
    name, options = "swinv2_tiny_window8_256", dict(SMALL[SWIN], depths=(1, 1))
    model = create(ModelConfig(name, options=options), num_classes=5).eval()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):  # untrained, its blocks are switched off
            nn.init.ones_(module.weight)
    networks = [timm.create_model(name, num_classes=5, **options).eval() for _ in range(2)]
    for other in networks:
        other.load_state_dict(model.backbone.state_dict())
    apply(model, LoRA(rank=2, alpha=20))
    for module in model.modules():
        if isinstance(module, LoraLinear):
            nn.init.ones_(module.lora_b)
    with caplog.at_level(logging.WARNING, logger="roli_fast.compat"):
        save(model, tmp_path)
    assert caplog.text.count("qkv_bias_separate = True") == 1
    for module in networks[1].modules():
        if hasattr(module, "qkv_bias_separate"):
            module.qkv_bias_separate = True
    x = normalised(model, pictures(SWIN))
    without, with_switch = (
        hf.PeftModel.from_pretrained(other, tmp_path).eval()(x) for other in networks
    )
    close(with_switch, model.backbone(x))
    assert float((without - with_switch).detach().abs().max()) > 1e-4

"""LoRA in PEFT's format: PEFT opens ours, we open its, with equal logits; what cannot be saved or
loaded is refused, and changes nothing."""

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import SIZES, SMALL, images, same, tiny
from torch import Tensor, nn

from roli_fast.compat.peft import join_b, load, save
from roli_fast.errors import ArgumentError, CheckpointError
from roli_fast.models import Classifier, create, init_head, save_model, wrap
from roli_fast.models import Model as ModelConfig
from roli_fast.models import load as load_model
from roli_fast.peft import Adapter, LoRA, LoraLinear, apply, merge

VIT, SWIN = NETWORKS = ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224")
HEADS = {VIT: "head", SWIN: "head.fc"}
TARGETS = [("q", "v"), ("qkv",), ("k", "mlp.fc1", "proj")]


@pytest.fixture(scope="module")
def hf() -> Any:
    """The other side, of the extra `test`."""
    return pytest.importorskip("peft", reason="PEFT is not installed: pip install '.[test]'")


def stirred(name: str = VIT, **options: Any) -> Classifier:
    """A model with a head of its own and a LoRA that does something."""
    model = tiny(name)
    apply(model, LoRA(**{"rank": 2, "alpha": 3.0, "dropout": 0.25, **options}))
    init_head(model, "kaiming", seed=5)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, LoraLinear):
            drawn = torch.randn(module.lora_b.shape, generator=generator)
            module.lora_b.data.copy_(drawn * 0.3)
    return model.eval()


def network(name: str = VIT) -> nn.Module:
    """timm's own, with the weights of `tiny(name)` and another head."""
    made = timm.create_model(name, num_classes=5, **SMALL[name])
    head = HEADS[name] + "."
    state = tiny(name).backbone.state_dict()
    made.load_state_dict({n: t for n, t in state.items() if not n.startswith(head)}, strict=False)
    return made.eval()


def normalised(model: Classifier, x: Tensor) -> Tensor:
    mean, std = (torch.tensor(model.card[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (x - mean) / std


def pictures(name: str) -> Tensor:
    return images(4, 3, SIZES[name], SIZES[name], seed=3)


def theirs(hf: Any, name: str = VIT, **options: Any) -> Any:
    """A PEFT model of which every trained tensor is random."""
    config = {"r": 3, "lora_alpha": 7, "target_modules": ["qkv"], "modules_to_save": [HEADS[name]]}
    return stirred_of(hf, network(name), **{**config, **options})


def stirred_of(hf: Any, made: nn.Module, **config: Any) -> Any:
    adapted = hf.get_peft_model(made, hf.LoraConfig(**config))
    generator = torch.Generator().manual_seed(2)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return adapted.eval()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-5, atol=1e-5)


def differs(a: Tensor, b: Tensor) -> bool:
    return float((a - b).detach().abs().max()) > 1e-2


def test_blocks_by_hand() -> None:
    """Two slices of rank 1 on rows 0 and 2 of three."""
    whole = torch.tensor([[5.0, 0.0], [0.0, 0.0], [0.0, 7.0]])
    assert torch.equal(join_b(torch.tensor([[5.0], [7.0]]), ((0, 1), (2, 3)), 3), whole)


@pytest.mark.parametrize("targets", TARGETS, ids="-".join)
@pytest.mark.parametrize("name", NETWORKS)
def test_ours_in_peft_and_back(
    hf: Any, name: str, targets: tuple[str, ...], tmp_path: Path
) -> None:
    """PEFT gives the same logits and merges to the same weights. When it writes the adapter again
    it drops our card: whole layers then, the same function."""
    model, x = stirred(name, targets=targets), pictures(name)
    expected = model(x)
    assert differs(expected, tiny(name).eval()(x))
    save(model, tmp_path / "ours")
    adapted = hf.PeftModel.from_pretrained(network(name), tmp_path / "ours").eval()
    close(adapted(normalised(model, x)), expected)
    adapted.save_pretrained(tmp_path / "theirs")
    again = tiny(name).eval()
    load(again, tmp_path / "theirs")
    close(again(x), expected)
    plain = adapted.merge_and_unload()
    ours = merge(model).backbone.state_dict()
    assert plain.state_dict().keys() == ours.keys()
    for key, tensor in plain.state_dict().items():
        torch.testing.assert_close(ours[key], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
class TestTheirsInOurs:
    @pytest.mark.parametrize(
        "options",
        [
            dict(target_modules=["qkv"]),
            dict(target_modules=["mlp.fc1", "attn.proj"], lora_dropout=0.5, lora_alpha=2.5),
            dict(target_modules=r".*blocks\.1.*fc2", modules_to_save=None),
            dict(
                target_modules=["qkv", "fc1"],
                rank_pattern={r"blocks\.[1-9]\.attn\..+": 4, "mlp.fc1": 2},
                alpha_pattern={r".*fc\d": 9},
            ),
            dict(target_modules=["qkv"], use_rslora=True, rank_pattern={"blocks.1.attn.qkv": 4}),
        ],
        ids=["qkv", "mlp", "regex", "patterns", "rslora"],
    )
    def test_logits(self, hf: Any, name: str, options: dict[str, Any], tmp_path: Path) -> None:
        adapted, model, x = theirs(hf, name, **options), tiny(name).eval(), pictures(name)
        if "modules_to_save" in options:  # then the file has no head and the model's stays
            head = adapted.get_base_model().get_submodule(HEADS[name])
            model.head.load_state_dict(head.state_dict())
        before = model(x)
        adapted.save_pretrained(tmp_path)
        if "lora_alpha" in options:  # as PEFT wrote before 0.5
            tensors = tmp_path / "adapter_model.safetensors"
            torch.save(load_file(tensors), tmp_path / "adapter_model.bin")
            tensors.unlink()
        names = load(model, tmp_path)
        assert {tree["dropout"] for tree in model.card["tuning"]} == {
            options.get("lora_dropout", 0.0)
        }
        expected = adapted(normalised(model, x))
        assert differs(expected, before)
        close(model(x), expected)
        assert names == [*dict.fromkeys(names)]
        assert set(names) == {n for n, p in model.named_parameters() if p.requires_grad}
        close(
            merge(model).backbone(normalised(model, x)),
            adapted.merge_and_unload()(normalised(model, x)),
        )

    def test_the_whole_classifier_head_is_ours_too(
        self, hf: Any, name: str, tmp_path: Path
    ) -> None:
        """Swin's head is a module around the linear layer; "head" takes all of it."""
        adapted = theirs(hf, name, modules_to_save=["head"])
        adapted.save_pretrained(tmp_path)
        model = tiny(name).eval()
        load(model, tmp_path)
        close(model(pictures(name)), adapted(normalised(model, pictures(name))))


@pytest.mark.parametrize("name", NETWORKS)
def test_ours_in_ours(name: str, tmp_path: Path) -> None:
    """LoRAs of two ranks, slices among them, on whole layers: the same function, and the trained
    model can be saved as ever."""
    model, again, x = stirred(name), tiny(name).eval(), pictures(name)
    apply(model, LoRA(rank=3, alpha=1, targets=("fc1",)))
    save(model, tmp_path)
    names = load(again, tmp_path)
    close(again(x), model.eval()(x))
    assert {(tree["rank"], tree["alpha"]) for tree in again.card["tuning"]} == {(4, 6), (3, 1)}
    assert sorted(names) == sorted(n for n, p in again.named_parameters() if p.requires_grad)
    save_model(again, tmp_path / "model.safetensors")
    with torch.no_grad():  # what requires grad differs, and with it the kernels that are taken
        assert torch.equal(load_model(tmp_path / "model.safetensors")(x), again(x))


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


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT's
def test_a_network_of_transformers(hf: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=3,
    )
    made = transformers.ViTForImageClassification(config).eval()
    model = wrap(copy.deepcopy(made))
    names = {name.rsplit(".", 1)[-1] for name, _ in made.named_modules()}
    targets = ["query", "value"] if "query" in names else ["q_proj", "v_proj"]
    options: Any = dict(target_modules=targets, modules_to_save=["classifier"])
    theirs = stirred_of(hf, made, r=2, lora_alpha=3, **options)
    theirs.save_pretrained(tmp_path)
    load(model, tmp_path)
    x = images(2, 3, 8, 8)
    close(model.eval()(x), theirs(x).logits)
    with pytest.raises(CheckpointError, match="`model`.*models.wrap its network"):
        load(tiny(), tmp_path)


class TestRefused:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        save(stirred(), tmp_path / "adapter")
        return tmp_path / "adapter"

    def change(self, folder: Path, **fields: Any) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    def change_tensors(self, folder: Path, change: Any) -> None:
        path = folder / "adapter_model.safetensors"
        state = load_file(path)
        change(state)
        save_file(state, path)

    def check(self, folder: Path, message: str, model: Classifier | None = None) -> None:
        """Refused with the message, and the model is as it was."""
        model = model or tiny()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises((CheckpointError, ArgumentError), match=message):
            load(model, folder)
        assert same(dict(model.state_dict()), before)
        assert all(parameter.requires_grad for parameter in model.parameters())

    def test_another_backbone(self, folder: Path) -> None:
        message = rf"`model`.*{VIT} with sha256 [0-9a-f]{{64}}, got {VIT} with [0-9a-f]{{64}}"
        for other in (tiny(seed=1), tiny(config={"mean": (0.4, 0.4, 0.4)})):
            self.check(folder, message, other)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            (dict(use_dora=True), "`use_dora` is True"),
            (dict(init_lora_weights="pissa_niter_4"), "`init_lora_weights` is 'pissa_niter_4'"),
            (dict(something_new={"a": 1}), "`something_new` is {'a': 1}"),
            (dict(peft_type="IA3"), "`peft_type` is 'IA3'"),
            (dict(r=5), r"`backbone.blocks.0.attn.qkv`: expected A and B of shapes \(5, 16\)"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_fields(self, folder: Path, fields: dict[str, Any], message: str) -> None:
        self.change(folder, **fields)
        self.check(folder, message)

    def test_another_network(self, folder: Path) -> None:
        """The head does not fit either, and is not the reason."""
        layer = "vit.encoder.layer.0.attention.attention.query"

        def rename(state: dict[str, Tensor]) -> None:
            for key in list(state):
                place = key.replace("head.", "classifier.").replace("blocks.0.attn.qkv", layer)
                state[place.replace("blocks.1.attn.qkv", layer[:-5] + "value")] = state.pop(key)

        self.change_tensors(folder, rename)
        self.check(folder, rf"`model`.*{layer}.*got {VIT} without.*models.wrap its network")

    def test_other_trained_modules(self, folder: Path) -> None:
        key = "base_model.model.norm.weight"
        self.change_tensors(folder, lambda s: s.update({key: torch.ones(16)}))
        self.check(folder, "`modules_to_save`: .*head.weight, head.bias.*norm.weight")

    def test_other_classes(self, folder: Path) -> None:
        self.check(folder, r"`num_classes`.*\(7, 16\).*\(5, 16\)", tiny(num_classes=7))

    def test_a_model_with_lora(self, folder: Path) -> None:
        model = stirred()
        model.requires_grad_(True)
        self.check(folder, "`model`: expected a classifier without LoRA", model)

    def test_missing_and_damaged_files(self, folder: Path, tmp_path: Path) -> None:
        self.check(tmp_path, "`adapter_config.json`: expected a JSON file")
        tensors = folder / "adapter_model.safetensors"
        tensors.write_bytes(tensors.read_bytes()[:-8])
        self.check(folder, "complete file of tensors")
        tensors.unlink()
        self.check(folder, "`weights`: expected an existing .safetensors")

    def test_saving(self, tmp_path: Path) -> None:
        with pytest.raises(
            ArgumentError, match="`model`.*LoRA and nothing else, got one with none"
        ):
            save(tiny(), tmp_path)
        model = stirred()
        apply(model, Adapter(4))
        with pytest.raises(ArgumentError, match="got one with lora, adapter"):
            save(model, tmp_path)

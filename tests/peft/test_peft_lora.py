"""LoRA: which rows of which layers, the layer's formula, merging, and what is refused."""

from typing import Any

import pytest
import torch
from tiny_models import SIZES, SMALL, images, tiny
from torch import Tensor, nn

from roli_fast.engine import Engine, InputGradient
from roli_fast.errors import ArgumentError
from roli_fast.models import Classifier, Model, create, load, save_model
from roli_fast.peft import Adapter, Linear, LoRA, LoraLinear, apply, merge
from roli_fast.peft.targets import check_called, find_layers

NETWORKS = ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224")
QKV = "backbone.blocks.0.attn.qkv"


def stirred(name: str = NETWORKS[0], **options: Any) -> Classifier:
    """A model whose LoRA does something."""
    model = tiny(name)
    apply(model, LoRA(**{"rank": 2, **options}))
    generator = torch.Generator().manual_seed(1)
    for layer in layers(model).values():
        layer.lora_b.data.copy_(0.1 * torch.randn(layer.lora_b.shape, generator=generator))
    return model.eval()


def layers(model: nn.Module) -> dict[str, LoraLinear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, LoraLinear)}


def update(layer: LoraLinear, *, magnitude: bool = False) -> Tensor:
    """scale * B_i A_i in its rows, fp64, slice by slice; with `magnitude` of absolute values."""
    out = torch.zeros(layer.out_features, layer.in_features, dtype=torch.float64)
    rank, at = layer.lora_b.shape[1], 0
    for i, (start, stop) in enumerate(layer.rows or ((0, layer.out_features),)):
        a = layer.lora_a.detach().double()[i * rank : (i + 1) * rank]
        b = layer.lora_b.detach().double()[at : at + stop - start]
        out[start:stop] = layer.scale * (b.abs() @ a.abs() if magnitude else b @ a)
        at += stop - start
    return out


def test_q_and_v_are_the_first_and_the_last_third() -> None:
    model = tiny()
    names = [f"backbone.blocks.{i}.attn.qkv.lora_{part}" for i in (0, 1) for part in "ab"]
    head = ["backbone.head.weight", "backbone.head.bias"]
    assert apply(model, LoRA(rank=2, alpha=6)) == [*names, *head]
    layer = layers(model)[QKV]
    assert layer.rows == ((0, 16), (32, 48)) and layer.scale == 3
    assert layer.lora_a.shape == (4, 16) and layer.lora_b.shape == (32, 2)
    assert not layer.lora_b.any() and bool((layer.lora_a.abs() <= 1 / 4).all())
    assert "rank=2, rows=((0, 16), (32, 48))" in repr(layer)


@pytest.mark.parametrize(
    ("targets", "names", "rows"),
    [
        (("k",), ["attn.qkv"], ((16, 32),)),
        (("v", "q", "k"), ["attn.qkv"], ((0, 16), (16, 32), (32, 48))),
        (("qkv",), ["attn.qkv"], None),
        (("blocks.0.attn.proj", "blocks.1.attn.proj"), ["attn.proj"], None),
        (("mlp.fc1", "fc2"), ["mlp.fc1", "mlp.fc2"], None),
    ],
)
def test_targets(targets: tuple[str, ...], names: list[str], rows: object) -> None:
    found = find_layers(tiny(), targets)
    assert list(found) == [f"backbone.blocks.{i}.{name}" for i in range(2) for name in names]
    assert set(found.values()) == {rows}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_layer_adds_its_update(name: str) -> None:
    """Against W + update in fp64, row by row; k's rows are the plain layer's."""
    for layer in layers(stirred(name)).values():
        x = images(3, 7, layer.in_features)
        weight = layer.weight.detach().double() + update(layer)
        expected = x.double() @ weight.T + layer.bias.detach().double()
        with torch.no_grad():
            torch.testing.assert_close(layer(x), expected.float(), rtol=1e-5, atol=1e-6)
        third = layer.out_features // 3
        assert not update(layer)[third : 2 * third].any()


def test_dropout_is_on_in_updates_and_off_in_eval_mode() -> None:
    model = stirred(dropout=0.5)
    layer = layers(model)[QKV]
    x = images(4, layer.in_features)
    assert torch.equal(layer(x), layer(x))
    LoRA(rank=2, dropout=0.5).train_mode(model)
    assert layer.training and not model.backbone.training
    torch.manual_seed(0)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(layer(x), first)
    # an earlier LoRA is quiet where another method trains
    apply(model, Linear())
    Linear().train_mode(model)
    assert not any(m.training for m in model.modules())


@pytest.mark.parametrize(
    ("name", "targets"), [(NETWORKS[0], ("q", "v")), (NETWORKS[1], ("qkv", "fc1"))]
)
def test_merging_gives_a_plain_network(name: str, targets: tuple[str, ...], tmp_path) -> None:
    model, x = stirred(name, targets=targets), images(3, 3, SIZES[name], SIZES[name])
    before = {n: t.clone() for n, t in model.state_dict().items()}
    plain = merge(model)
    assert plain.state_dict().keys() == tiny(name).state_dict().keys()
    assert not layers(plain)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), model(x), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(model.state_dict()[n], tensor) for n, tensor in before.items())
    for n, layer in layers(model).items():
        exact = layer.weight.detach().double() + update(layer)
        parts = layer.weight.detach().double().abs() + update(layer, magnitude=True)
        # a sum of W and rank products in fp32: rank + 2 roundings, each of at most 2^-24 of the sum
        bound = (2 + 2) * 2.0**-24 * parts
        found = plain.get_parameter(f"{n}.weight").detach().double()
        assert bool(((found - exact).abs() <= bound).all())
    save_model(plain, tmp_path / "plain.safetensors", classes=tuple("abcde"))
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "plain.safetensors")(x), plain(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_an_attack_runs_on_merged_layers_and_leaves_none(name: str) -> None:
    """Also after an exception; gradient and logits are those of the unmerged layers."""
    model, x = stirred(name, dropout=0.5), images(3, 3, SIZES[name], SIZES[name])
    y = torch.tensor([0, 1, 2])
    LoRA(dropout=0.5).train_mode(model)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with InputGradient(model) as gradient:
        assert all(layer.merged is not None for layer in layers(model).values())
        grad, _, logits = gradient(x, y)
    with InputGradient(Engine(merge=False).bind(model)) as gradient:
        assert all(layer.merged is None for layer in layers(model).values())
        expected, _, exact = gradient(x, y)
    torch.testing.assert_close(logits, exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(KeyError), InputGradient(model):
        raise KeyError
    assert all(layer.merged is None and layer.training for layer in layers(model).values())
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[n], tensor) for n, tensor in before.items())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("swinv2_tiny_window8_256", SMALL["swin_tiny_patch4_window7_224"]),
        ("beit_base_patch16_224", dict(img_size=32, depth=1, embed_dim=24, num_heads=3)),
        ("eva02_tiny_patch14_224", dict(img_size=28, depth=1)),
    ],
)
def test_the_rows_of_v_are_vs(name: str, options: dict[str, Any]) -> None:
    """Where v is zero, so is what attention hands to its projection, whatever q and k are. These
    read the weight past the layer unless told otherwise."""
    model = create(Model(name, options=options), num_classes=2).eval()
    found = find_layers(model, ["v"])
    check_called(model, found)
    path, (span,) = next(iter(found.items()))  # type: ignore[misc]
    attention: Any = model.get_submodule(path.rpartition(".")[0])
    seen: list[Tensor] = []
    attention.proj.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    x = images(1, 3, options["img_size"], options["img_size"])
    with torch.no_grad():
        attention.qkv.weight.normal_()
        model(x)
        attention.qkv.weight[span[0] : span[1]] = 0
        for bias in (attention.qkv.bias, getattr(attention, "v_bias", None)):
            if bias is not None:
                bias.zero_()
        model(x)
    assert float(seen[0].abs().max()) > 0.01 and float(seen[1].abs().max()) == 0


class Reader(nn.Module):
    """Reads its layer's weight past the layer."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.inner.weight, self.inner.bias)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ("mlp.fc3",)}, r"`targets`.*vit_tiny_patch16_224, got 'mlp.fc3'.*fc1"),
        ({"targets": ("head",)}, "`targets`.*got 'head'"),
        ({"targets": ("q", "qkv")}, rf"one target for each row of {QKV}"),
        ({"targets": ("inner",)}, r"blocks\.1\.attn\.proj\.inner.*past the layer"),
        ({"rank": 17}, rf"`rank`: expected at most 16, the width of {QKV}"),
        ({"rank": 0}, "`rank`.*got 0"),
        ({"alpha": 0.0}, "`alpha`.*got 0.0"),
        ({"targets": ("q", "q")}, "`targets`"),
        ({"dropout": 1.0}, "`dropout`.*got 1.0"),
    ],
)
def test_refusals_leave_the_model_as_it_was(options: dict[str, Any], message: str) -> None:
    model = tiny()
    attention: Any = model.get_submodule("backbone.blocks.1.attn")
    attention.proj = Reader(attention.proj)
    training = [m.training for m in model.modules()]
    with pytest.raises(ArgumentError, match=message):
        apply(model, LoRA(**{"rank": 2, **options}))
    assert training == [m.training for m in model.modules()]
    assert not layers(model) and "tuning" not in model.card


def test_twice_and_what_cannot_be_merged() -> None:
    model = stirred()
    with pytest.raises(ArgumentError, match=r"`tuning`.*has it already. peft.merge"):
        apply(model, LoRA(rank=2))
    once = merge(model)
    with pytest.raises(ArgumentError, match="got one without LoRA"):
        merge(once)
    assert len(apply(once, LoRA(rank=2))) == 6
    apply(once, Adapter(4))
    with pytest.raises(ArgumentError, match=r"one with .*mlp\.adapter, which is not linear"):
        merge(once)

"""Methods that pick places find all of them in timm's networks, or say that they do not."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from roli_fast.errors import ArgumentError
from roli_fast.models import Classifier, Model, create
from roli_fast.peft import LoRA
from roli_fast.peft.adapter import mlps as mlps_of
from roli_fast.peft.targets import FUSED, find_layers

ATTENTION = re.compile(r"attn|attention|xca|mhsa|gpsa|spatialtransformer", re.IGNORECASE)

NETWORKS: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": {"depth": 2},
    "cait_xxs24_224": {"depth": 2},
    "caformer_s18": {},
    "convit_tiny": {"depth": 12},
    "crossvit_tiny_240": {},
    "csatv2": {},
    "davit_tiny": {},
    "edgenext_xx_small": {},  # its attention is called xca, and blocks were passed over once
    "hiera_tiny_224": {},
    "mobilevit_xxs": {},
    "mvitv2_tiny": {},
    "nest_tiny": {},
    "pit_ti_224": {},
    "pvt_v2_b0": {},
    "swin_tiny_patch4_window7_224": {},
    "test_vit3": {},  # with an attention pooling
    "test_vit_relpos": {},
    "tnt_s_patch16_224": {"depth": 2},
    "twins_svt_small": {},
    "volo_d1_224": {},
    "xcit_nano_12_p16_224": {"depth": 2},
}
"""Networks with attention of every kind, and options that make them smaller."""


def hollow(name: str, options: dict[str, Any]) -> Classifier:
    """The network's modules without their weights."""
    with torch.device("meta"):
        backbone = timm.create_model(name, num_classes=5, **options)
    return Classifier(backbone, Model(name), [0.5] * 3, [0.5] * 3)


def check_places(name: str, options: dict[str, Any]) -> None:
    model = hollow(name, options)
    modules = list(model.named_modules())
    attentions = [
        path
        for path, module in modules
        if ATTENTION.search(type(module).__name__)
        and any(isinstance(child, nn.Linear) for child in module.children())
    ]
    try:
        found = find_layers(model, LoRA().targets)
    except ArgumentError as error:
        assert re.match(r"`(targets|model\.name)`: ", str(error))  # nothing, or two heads
    else:
        adapted = {layer.rpartition(".")[0] for layer in found}
        assert attentions and [path for path in attentions if path not in adapted] == []
    try:
        chosen = mlps_of(model)
    except ArgumentError as error:
        assert str(error).startswith("`tuning`")
    else:
        aside = ("rel_pos.mlp", "meta_mlp", "attn_pool.mlp", "aligner", ".se")  # no blocks
        every = [path for path, module in modules if hasattr(module, "fc2")]
        assert [p for p in every if p not in chosen and not p.endswith(aside)] == []


@pytest.mark.parametrize("name", NETWORKS)
def test_no_block_is_passed_over_in_silence(name: str) -> None:
    check_places(name, NETWORKS[name])


FAMILIES = {timm.model_entrypoint(n).__module__: n for n in reversed(timm.list_models("*[!lge]"))}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES.values())
def test_nor_in_any_family_of_timm(name: str) -> None:
    check_places(name, {})


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("xcit_nano_12_p16_224", 12 + 2 * 2),  # of 14: the last two have q and v of their own
        ("cait_xxs24_224", 24 + 2 * 2),
        ("volo_d1_224", 4 + 14 + 2 * 2),  # outlook's v; qkv; q and kv of the class attention
        ("crossvit_tiny_240", 15 + 2 * 6),  # wq and wv between the branches
    ],
)
def test_how_many_layers_lora_takes(name: str, layers: int) -> None:
    assert len(find_layers(hollow(name, {}), ("q", "v"))) == layers


def test_what_lora_would_pass_over_is_named() -> None:
    with pytest.raises(
        ArgumentError, match=r"28 places left out of 18 attentions: q of .*qkv \(Sp"
    ):
        find_layers(hollow("csatv2", {}), ("q", "v"))
    with pytest.raises(ArgumentError, match=r"no `mlp` of linear layers \(.*mlp_in\)"):
        mlps_of(hollow("tnt_s_patch16_224", {"depth": 1}))
    assert find_layers(hollow("csatv2", {}), ("qkv",))  # named as a whole it is what was meant


LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "cait_xxs24_224": (32, {"depth": 1, "img_size": 32}),
    "convit_tiny": (32, {"depth": 2, "local_up_to_layer": 1, "img_size": 32}),
    "edgenext_xx_small": (64, {}),
    "hiera_tiny_224": (224, {"stages": (1, 1, 1, 1)}),
    "pvt_v2_b0": (64, {}),
    "swin_tiny_patch4_window7_224": (64, {"depths": (1, 1, 1, 1), "img_size": 64}),
    "test_vit3": (160, {}),
    "test_vit_relpos": (160, {}),
    "tnt_s_patch16_224": (32, {"depth": 1, "img_size": 32}),
    "twins_svt_small": (64, {"depths": (1, 1, 1, 1)}),
    "volo_d1_224": (64, {"img_size": 64}),
    "xcit_nano_12_p16_224": (32, {"depth": 1, "img_size": 32}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_rows_are_those_of_the_letter(name: str) -> None:
    """With v's rows at zero an attention gives every token the same; with q's, k does not count."""
    size, options = LAYOUTS[name]
    model = create(Model(name, options=options), num_classes=5).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    rows = {t: find_layers(model, (t,)) for t in "qkv" if letters_of(model, t)}
    fused = {n for found in rows.values() for n, own in found.items() if own}
    given: dict[str, Any] = {}
    for layer in fused:
        attention = model.get_submodule(layer.rpartition(".")[0])
        attention.register_forward_pre_hook(
            lambda _m, args, options, layer=layer: (
                given.setdefault(layer, (args, options)) and None
            ),
            with_kwargs=True,
        )
    with torch.no_grad():
        model(torch.rand(2, 3, size, size, generator=draw))
    assert given.keys() == fused and fused
    for layer, (args, options) in given.items():
        attention = model.get_submodule(layer.rpartition(".")[0])
        places = {t: found[layer][0] for t, found in rows.items() if found.get(layer)}

        def out(change: Callable[[Tensor], None]) -> Tensor:
            def changed(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
                output = output.clone()
                change(output)
                return output

            handle = model.get_submodule(layer).register_forward_hook(changed)  # noqa: B023
            try:
                with torch.no_grad():
                    found = attention(*args, **options)  # noqa: B023
            finally:
                handle.remove()
            return found[0] if isinstance(found, tuple) else found

        if "v" in places:
            flat = out(lambda y: y[..., slice(*places["v"])].zero_())  # noqa: B023
            assert (flat - flat.flatten(0, -2)[0]).abs().max() < 1e-4
            assert (out(lambda _: None) - flat).abs().max() > 1e-2
        if "q" in places and "k" in places:

            def no_query(y: Tensor) -> None:
                y[..., slice(*places["q"])] = 0  # noqa: B023

            def other_keys(y: Tensor) -> None:
                no_query(y)  # noqa: B023
                y[..., slice(*places["k"])] *= -2  # noqa: B023

            assert torch.allclose(out(no_query), out(other_keys), atol=1e-4)


def letters_of(model: Classifier, letter: str) -> bool:
    """Whether the target is known in this network at all (an outlook attention has no q)."""
    try:
        return bool(find_layers(model, (letter,)))
    except ArgumentError:
        return False


def test_the_table_names_classes_of_timm() -> None:
    found = set()
    for path in FUSED:
        module, _, name = path.rpartition(".")
        if hasattr(__import__(module, fromlist=[name]), name):
            found.add(path)
    assert len(found) >= len(FUSED) - 1, FUSED - found  # timm moves one now and then

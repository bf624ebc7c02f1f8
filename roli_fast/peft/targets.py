"""Which linear layers a target of LoRA names."""

import difflib
import re
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from roli_fast.errors import ArgumentError, describe
from roli_fast.models.classifier import Classifier, backbone_of, head_name, name_of
from roli_fast.peft.base import Inserted

Rows = tuple[tuple[int, int], ...]

SLICES = ("q", "k", "v")
"""Targets that mean a projection of every attention, or its rows of a fused one."""

_PROJECTION = re.compile(r"(?:w|to_|in_)?(q|k|v|qk|kv|qkv)s?(?:_?proj|_proj_weight)?")
"""Own name of a layer or parameter that makes what the letters say."""

FUSED = frozenset(
    (
        "timm.layers.attention.Attention",
        "timm.layers.attention.AttentionRope",
        "timm.layers.attention_pool.AttentionPoolLatent",
        "timm.models.beit.Attention",
        "timm.models.cait.TalkingHeadAttn",
        "timm.models.convit.GPSA",
        "timm.models.convit.MHSA",
        "timm.models.edgenext.CrossCovarianceAttn",
        "timm.models.eva.EvaAttention",
        "timm.models.hiera.MaskUnitAttention",
        "timm.models.metaformer.Attention",
        "timm.models.nest.Attention",
        "timm.models.pvt_v2.Attention",
        "timm.models.swin_transformer.WindowAttention",
        "timm.models.swin_transformer_v2.WindowAttention",
        "timm.models.tnt.Attention",
        "timm.models.twins.GlobalSubSampleAttn",
        "timm.models.twins.LocallyGroupedAttn",
        "timm.models.vision_transformer.Attention",
        "timm.models.vision_transformer_relpos.RelPosAttention",
        "timm.models.volo.Attention",
        "timm.models.volo.ClassAttention",
        "timm.models.xcit.XCA",
    )
)
"""Attention whose `qkv` has all rows of q first, then k's, then v's (others interleave heads);
likewise a `kv` or `qk`."""


def find_layers(model: nn.Module, targets: Iterable[str]) -> dict[str, Rows | None]:
    """Layer name -> output rows (None for all), in the order of the model.

    Raises:
        ArgumentError: a target that no layer has, with the names that are near, or two targets that
            mean the same rows.
    """
    layers, targets = _linears(model), tuple(targets)
    fused = {name: letters for name in layers if (letters := _fused(model, name))}
    chosen: dict[str, list[str]] = {}
    for target in targets:
        found = [name for name in layers if f".{name}".endswith(f".{target}")]
        if target in SLICES:
            own = (n for n in layers if _letters(n) == target or target in fused.get(n, ""))
            found += [name for name in own if name not in found]
        if not found:
            raise ArgumentError(_unknown(model, layers, target))
        for name in found:
            chosen.setdefault(name, []).append(target)
    _check_attentions(model, set(targets) & set(SLICES), chosen)
    out: dict[str, Rows | None] = {}
    for name in (name for name in layers if name in chosen):
        wanted = chosen[name]
        inside = fused.get(name, "")
        parts = sorted(inside.index(t) for t in wanted if t in SLICES and t in inside)
        if len(wanted) > max(1, len(parts)):
            expected = f"one target for each row of {name}"
            raise ArgumentError(describe("targets", expected, tuple(wanted)))
        rows = layers[name].out_features // max(1, len(inside))
        out[name] = tuple((i * rows, (i + 1) * rows) for i in parts) or None
    return out


def _linears(model: nn.Module) -> dict[str, nn.Linear]:
    """All linear layers, the head left out: it trains as a whole. timm's subclasses compute
    otherwise; one with LoRA is found, and refused with a reason."""
    head = head_name(model)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and (type(module) is nn.Linear or isinstance(module, Inserted))
        and name != head
    }


def _letters(name: str) -> str:
    """What a layer or parameter projects to by its own name: "q" of "attn.q_proj", "" of "fc1"."""
    match = _PROJECTION.fullmatch(name.rpartition(".")[2])
    return match[1] if match else ""


def _fused(model: nn.Module, name: str) -> str:
    """The letters of a layer of several projections, where its rows are known to follow them."""
    kinds = type(model.get_submodule(name.rpartition(".")[0])).__mro__
    known = any(f"{k.__module__}.{k.__qualname__}" in FUSED for k in kinds)
    return _letters(name) if known and len(_letters(name)) > 1 else ""


def _check_attentions(model: nn.Module, wanted: set[str], chosen: Mapping[str, list[str]]) -> None:
    """Raise where "q", "k" or "v" would pass over an attention of the network in silence."""
    left: list[str] = []
    attentions = 0
    for name, module in model.named_modules():
        parts = [n for n, _ in (*module.named_children(), *module.named_parameters(recurse=False))]
        projections = {f"{name}.{part}": _letters(part) for part in parts if _letters(part)}
        attentions += bool(projections)
        for target in sorted(wanted):
            inside = [path for path, letters in projections.items() if target in letters]
            if inside and not any(path in chosen for path in inside):
                left.append(f"{target} of {inside[0]} ({type(module).__name__})")
    if left:
        got = f"{len(left)} places left out of {attentions} attentions: {left[0]}"
        fix = "How their rows are laid out is not known here, or they are no linear layers: name "
        fix += "whole layers, such as qkv, or use bias or full."
        expected = f"q, k or v in every attention of {name_of(model)}"
        raise ArgumentError(describe("targets", expected, got, fix))


def _unknown(model: nn.Module, layers: Iterable[str], target: str) -> str:
    expected = f"names of linear layers of {name_of(model)}"
    ends = sorted({name.rpartition(".")[2] for name in layers})
    if not ends:
        fix = "It has none but its head, which trains as it is (1x1 convolutions do not count): "
        return describe("targets", expected, repr(target), f"{fix}use bias or full.")
    fix = f"Its layers end in: {', '.join(ends)}."
    if near := difflib.get_close_matches(target.rpartition(".")[2], ends):
        fix = f"Similar: {', '.join(near)}. {fix}"
    if target in SLICES:
        fix += f" It has no attention whose rows are known here: use targets such as {ends[0]!r}."
    return describe("targets", expected, repr(target), fix)


def check_called(model: nn.Module, names: Iterable[str]) -> None:
    """Raise unless a forward of the backbone calls each of the named layers.

    Some networks read a layer's weight past the layer, and an update beside it would be dead. Beit,
    Eva and Swin V2 do so to add separate biases of q and v; they are told to add them afterwards,
    the same up to rounding.
    """
    called: set[str] = set()
    hooks = []
    for name in names:
        attention = model.get_submodule(name.rpartition(".")[0])
        if getattr(attention, "qkv_bias_separate", None) is False:
            attention.qkv_bias_separate = True  # type: ignore[assignment]
        layer = model.get_submodule(name)
        hooks.append(layer.register_forward_pre_hook(lambda *_, name=name: called.add(name)))
    try:
        known = isinstance(model, Classifier)
        channels = len(model.card["mean"]) if known else 3
        _blank_forward(backbone_of(model), channels, model.image_size if known else None)
    finally:
        for hook in hooks:
            hook.remove()
    if dead := [name for name in names if name not in called]:
        got = f"{dead[0]}, whose weight {name_of(model)} reads past the layer"
        raise ArgumentError(describe("targets", "layers that are called", got))


def _blank_forward(backbone: nn.Module, channels: int, size: int | None) -> None:
    """One blank image of `size`, else of the network's own size, in eval mode; the modes are put
    back."""
    own = getattr(backbone, "pretrained_cfg", {}).get("input_size", (channels, 224, 224))[1:]
    # where patches are made, "patch_embed" of a ViT, "stem" of a mixer; transformers' configuration
    built = [getattr(part, "img_size", None) for part in backbone.children()]
    built.append(getattr(getattr(backbone, "config", None), "image_size", None))
    shape = (size, size) if size else next(filter(None, built), own)
    shape = (shape, shape) if isinstance(shape, int) else shape
    modes = [(module, module.training) for module in backbone.modules()]
    like = next(backbone.parameters())
    try:
        with torch.no_grad():
            backbone.eval()(like.new_zeros(1, channels, *shape))
    finally:
        for module, training in modes:
            module.training = training

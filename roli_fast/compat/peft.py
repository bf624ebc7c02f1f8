"""LoRA in the format of Hugging Face PEFT: adapter_config.json and adapter_model.safetensors.

PEFT itself is not needed to read or write it. Format: PEFT 0.21, `PeftModel.save_pretrained`.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from roli_fast.compat.lora_blocks import join_b, split_b
from roli_fast.compat.peft_config import make_config, numbers_of, read_config
from roli_fast.errors import ArgumentError, CheckpointError, describe
from roli_fast.files import write_json, write_tensors
from roli_fast.models import Classifier, backbone_fingerprint, read_state_dict
from roli_fast.models.weights import read_card
from roli_fast.peft import LoRA, LoraLinear, apply
from roli_fast.peft.base import from_tree

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
CARD = "roli_fast_adapter"
"""Key of our own entry in the tensors' metadata, which PEFT passes over."""

PREFIX, BACKBONE = "base_model.model.", "backbone."
"""What PEFT's names, and ours, have before timm's."""

A, B = ".lora_A.weight", ".lora_B.weight"

logger = logging.getLogger("roli_fast.compat")


class Adapter(NamedTuple):
    """A folder that was read; layers and the head's tensors under timm's names."""

    config: dict[str, Any]
    card: dict[str, Any]
    layers: dict[str, tuple[Tensor, Tensor]]
    head: dict[str, Tensor]


def save(model: Classifier, folder: str | Path) -> None:
    """Write the model's LoRA and head, so that PEFT opens them on the plain timm network:

        network = timm.create_model(name, num_classes=C, **options)   # and the backbone's weights
        peft.PeftModel.from_pretrained(network, folder)

    There images are normalised by the caller, with `model.card`'s mean and std. q, k or v alone
    become one LoRA on the whole of qkv with zeros in B: the same function, and the rank and alpha
    of the file are k times the model's. The file also carries the backbone's fingerprint.

    Args:
        model: a classifier with LoRA and no other inserted modules.
        folder: made if need be; its two files are replaced.

    Raises:
        ArgumentError: another tuning method's modules, no LoRA, or a path that is a file.
    """
    trees = model.card.get("tuning", [])
    if not trees or any(tree["name"] != "lora" for tree in trees):
        got = f"one with {', '.join(tree['name'] for tree in trees) or 'none'}"
        raise ArgumentError(describe("model", "a model with LoRA and nothing else", got))
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(describe("folder", "a folder", f"'{folder}', a file"))
    tensors, numbers = {}, {}
    for name, layer in _adapted(model).items():
        rows = layer.rows or ((0, layer.out_features),)
        tensors[PREFIX + name + A] = layer.lora_a
        tensors[PREFIX + name + B] = join_b(layer.lora_b.detach(), rows, layer.out_features)
        rank = len(layer.lora_a)
        alpha = layer.scale * rank
        whole = round(alpha)
        numbers[name] = rank, whole if whole / rank == layer.scale else alpha
        if hasattr(model.get_submodule(BACKBONE + name.rpartition(".")[0]), "qkv_bias_separate"):
            logger.warning(
                "%s: timm reads this weight past the layer; set qkv_bias_separate = True on its "
                "attention, or PEFT's LoRA has no effect there",
                name,
            )
    head = model.head_name.removeprefix(BACKBONE)
    for own, parameter in model.head.named_parameters():
        tensors[f"{PREFIX}{head}.{own}"] = parameter
    card = {"backbone": _fingerprint(model), "name": model.config.name, "tuning": trees}
    kind = type(model.backbone)
    config = make_config(
        numbers, dropout=trees[0]["dropout"], head=head, base=(kind.__module__, kind.__name__)
    )
    write_tensors(folder / TENSORS, tensors, {"format": "pt", CARD: json.dumps(card)})
    write_json(folder / CONFIG, config)


def load(model: Classifier, folder: str | Path) -> list[str]:
    """Put a LoRA that PEFT or `save` wrote on a classifier without one, in place.

    Everything is checked before the model is touched. `save`'s own slices (q and v say) are slices
    again; PEFT's are on whole layers. A head in the file replaces the model's.

    Args:
        model: the classifier with the backbone that the adapter was trained on.
        folder: with adapter_config.json and adapter_model.safetensors.

    Returns:
        Names of the trainable parameters, as `peft.apply`.

    Raises:
        CheckpointError: files that are missing, damaged, of another backbone, or whose
            configuration is more than plain LoRA on linear layers.
        ArgumentError: LoRA cannot be applied: the model has one already, rank > width.
    """
    file = _read(model, Path(folder))
    expected, found = file.card.get("backbone"), _fingerprint(model)
    if expected not in (None, found):
        raise CheckpointError(
            describe(
                "model",
                f"the backbone of '{folder}', {file.card.get('name')} with sha256 {expected}",
                f"{model.config.name} with {found}",
                "Load the weights and use the mean and std that it was trained with.",
            )
        )
    methods, tensors = _plan(model, file)
    names: list[str] = []
    for method in methods:
        names += [name for name in apply(model, method) if name not in names]
    for parameter in (parameters := dict(model.named_parameters())).values():
        parameter.requires_grad_(False)
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)
    for name in names:
        parameters[name].requires_grad_(True)
    return names


def _adapted(model: Classifier) -> dict[str, LoraLinear]:
    """The layers with LoRA under timm's names."""
    modules = model.backbone.named_modules()
    return {name: module for name, module in modules if isinstance(module, LoraLinear)}


def _fingerprint(model: Classifier) -> str:
    """That of the backbone without its LoRA."""
    own = ("lora_a", "lora_b")
    adapters = {f"{BACKBONE}{name}.{tensor}" for name in _adapted(model) for tensor in own}
    return backbone_fingerprint(model, without=adapters)


def _read(model: Classifier, folder: Path) -> Adapter:
    """Read both files and sort the tensors into layers and head."""
    config = read_config(folder / CONFIG)
    state = {n.removeprefix(PREFIX): t for n, t in read_state_dict(folder / TENSORS).items()}
    card = read_card(folder / TENSORS, CARD)
    names = [name.removesuffix(A) for name in state if name.endswith(A)]
    layers = {n: (state.pop(n + A), state.pop(n + B)) for n in names if n + B in state}
    prefix = model.head_name.removeprefix(BACKBONE)
    own = {f"{prefix}.{name}": tensor for name, tensor in model.head.named_parameters()}
    head = {name: state.pop(name) for name in own if name in state}
    if state or not layers:
        raise CheckpointError(
            describe(
                "modules_to_save",
                f"LoRA pairs of linear layers and the head ({', '.join(own)}) alone",
                f"'{folder}' with {', '.join(sorted(state)[:4]) or 'no LoRA'}",
            )
        )
    shapes, ours = _shapes(head), _shapes(own)
    if head and shapes != ours:
        fix = "Create the model with as many classes."
        raise CheckpointError(describe("num_classes", f"a head {ours}", f"{shapes}", fix))
    return Adapter(config, card, layers, head)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _plan(model: Classifier, file: Adapter) -> tuple[list[LoRA], dict[str, Tensor]]:
    """The methods to apply, and name -> values for the parameters that come to be."""
    for name, (a, b) in file.layers.items():
        _check_layer(model, name, a, b, numbers_of(file.config, name)[0])
    methods = _own_methods(file.card) or _whole_layers(model, file)
    head = {BACKBONE + name: tensor for name, tensor in file.head.items()}
    tensors, seen = head, set()
    for method in methods:
        for name, rows in method.find(model).items():
            short = name.removeprefix(BACKBONE)
            a, b = file.layers.get(short, (None, None))
            if a is None or b is None:
                raise CheckpointError(
                    describe("target_modules", f"{short}, as {CARD} says", "none")
                )
            rank, alpha = numbers_of(file.config, short)
            if abs(alpha / rank * method.rank / method.alpha - 1) > 1e-6:
                got = f"{alpha} for rank {rank} of {short}"
                expected = f"{method.alpha / method.rank:g} times the rank, as {CARD} says"
                raise CheckpointError(describe("lora_alpha", expected, got))
            spans = rows or ((0, len(b)),)
            part = split_b(b, spans) if len(a) == len(spans) * method.rank else None
            if part is None:
                expected = f"rank {method.rank} on rows {spans} alone, as {CARD} says"
                raise CheckpointError(describe(short + B, expected, tuple(b.shape)))
            tensors |= {f"{name}.lora_a": a, f"{name}.lora_b": part}
            seen.add(short)
    if rest := sorted(file.layers.keys() - seen):
        raise CheckpointError(describe("target_modules", f"the layers that {CARD} lists", rest[:4]))
    return methods, tensors


def _check_layer(model: Classifier, name: str, a: Tensor, b: Tensor, rank: int) -> None:
    modules = dict(model.backbone.named_modules())
    layer = modules.get(name)
    if not isinstance(layer, nn.Linear) or layer is model.head:
        known = sorted(
            {n.rpartition(".")[2] for n, m in modules.items() if isinstance(m, nn.Linear)}
        )
        expected = f"linear layers of {model.config.name} (not its head)"
        fix = f"Its linear layers end in: {', '.join(known)}."
        raise CheckpointError(describe("target_modules", expected, repr(name), fix))
    shapes = (rank, layer.in_features), (layer.out_features, rank)
    if (tuple(a.shape), tuple(b.shape)) != shapes:
        got = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise CheckpointError(describe(name, f"A and B of shapes {shapes[0]} and {shapes[1]}", got))


def _own_methods(card: Mapping[str, Any]) -> list[LoRA]:
    methods = [from_tree(tree) for tree in card.get("tuning", [])]
    return [method for method in methods if isinstance(method, LoRA)]


def _whole_layers(model: Classifier, file: Adapter) -> list[LoRA]:
    """One method for each pair of rank and alpha, on whole layers."""
    groups: dict[tuple[int, float], list[str]] = {}
    for name in file.layers:
        groups.setdefault(numbers_of(file.config, name), []).append(BACKBONE + name)
    dropout, wanted = file.config.get("lora_dropout", 0.0), file.config.get("target_modules")
    if len(groups) == 1 and isinstance(wanted, list):  # PEFT's words, where they mean the same here
        (((rank, alpha), names),) = groups.items()
        short = LoRA(rank=rank, alpha=alpha, dropout=dropout, targets=tuple(sorted(wanted)))
        try:
            same = short.find(model) == dict.fromkeys(names)
        except ArgumentError:
            same = False
        if same:
            return [short]
    return [
        LoRA(rank=rank, alpha=alpha, dropout=dropout, targets=tuple(names))
        for (rank, alpha), names in groups.items()
    ]

"""A folder in PEFT's format: read, sorted, and turned into LoRA methods that fit a model."""

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from roli_fast.compat.lora_blocks import split_b
from roli_fast.compat.peft_config import numbers_of, read_config
from roli_fast.errors import ArgumentError, CheckpointError, describe
from roli_fast.models import Classifier, read_state_dict
from roli_fast.models.weights import read_card
from roli_fast.peft import LoRA
from roli_fast.peft.base import from_tree
from roli_fast.peft.lora_linear import Rows

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
CARD = "roli_fast_adapter"
"""Key of our own entry in the tensors' metadata, which PEFT passes over."""

PREFIX, BACKBONE = "base_model.model.", "backbone."
"""What PEFT's names, and ours, have before timm's."""

A, B = ".lora_A.weight", ".lora_B.weight"


class Adapter(NamedTuple):
    """A folder that was read; layers and the head's tensors under timm's names."""

    config: dict[str, Any]
    card: dict[str, Any]
    layers: dict[str, tuple[Tensor, Tensor]]
    head: dict[str, Tensor]


def read(model: Classifier, folder: Path) -> Adapter:
    """Read both files and sort the tensors into layers and head.

    Raises:
        CheckpointError: a file is missing or damaged, or does not fit the model.
    """
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


def plan(model: Classifier, file: Adapter) -> tuple[list[LoRA], dict[str, Tensor]]:
    """The methods to apply, and name -> values for the parameters that come to be.

    Raises:
        CheckpointError: layers that the model does not have, or numbers, shapes or zeros that are
            not what our card says.
        ArgumentError: LoRA cannot be applied to the model.
    """
    for name, (a, b) in file.layers.items():
        _check_layer(model, name, a, b, numbers_of(file.config, name)[0])
    methods = _own_methods(file.card) or _whole_layers(model, file)
    tensors = {BACKBONE + name: tensor for name, tensor in file.head.items()}
    seen: set[str] = set()
    for method in methods:
        for name, rows in method.find(model).items():
            short = name.removeprefix(BACKBONE)
            tensors |= _fill(file, method, short, rows)
            seen.add(short)
    if rest := sorted(file.layers.keys() - seen):
        raise CheckpointError(describe("target_modules", f"the layers that {CARD} lists", rest[:4]))
    return methods, tensors


def _fill(file: Adapter, method: LoRA, name: str, rows: Rows | None) -> dict[str, Tensor]:
    """The values of a layer's `lora_a` and `lora_b`, when the file agrees with the method."""
    if name not in file.layers:
        raise CheckpointError(describe("target_modules", f"{name}, as {CARD} says", "none"))
    a, b = file.layers[name]
    rank, alpha = numbers_of(file.config, name)
    if not math.isclose(alpha / rank, method.alpha / method.rank, rel_tol=1e-6):
        expected = f"{method.alpha / method.rank:g} times the rank, as {CARD} says"
        raise CheckpointError(
            describe("lora_alpha", expected, f"{alpha} for rank {rank} of {name}")
        )
    spans = rows or ((0, len(b)),)
    part = split_b(b, spans) if rank == len(spans) * method.rank else None
    if part is None:
        expected = f"rank {method.rank} in each of the rows {spans} alone, as {CARD} says"
        got = f"{tuple(b.shape)} with something else"
        raise CheckpointError(describe(name + B, expected, got))
    return {f"{BACKBONE}{name}.lora_a": a, f"{BACKBONE}{name}.lora_b": part}


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
    if len(groups) == 1 and isinstance(wanted, list):
        (((rank, alpha), names),) = groups.items()
        with contextlib.suppress(ArgumentError):  # PEFT's words, where they mean the same here
            short = LoRA(rank, alpha, dropout, tuple(sorted(map(str, wanted))))
            if short.find(model) == dict.fromkeys(names):
                return [short]
    return [
        LoRA(rank=rank, alpha=alpha, dropout=dropout, targets=tuple(names))
        for (rank, alpha), names in groups.items()
    ]

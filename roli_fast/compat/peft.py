"""LoRA in the format of Hugging Face PEFT: adapter_config.json and adapter_model.safetensors or,
of older versions, adapter_model.bin.

PEFT itself is not needed to read or write it. Format: PEFT 0.21, `PeftModel.save_pretrained`.
"""

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from roli_fast.errors import ArgumentError, CheckpointError, describe
from roli_fast.files import naming, read_json, write_json, write_tensors
from roli_fast.models import Classifier, backbone_fingerprint, read_state_dict
from roli_fast.models.weights import read_card
from roli_fast.peft import LoRA, LoraLinear, apply
from roli_fast.peft.targets import Rows

logger = logging.getLogger("roli_fast.compat")

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
OLD_TENSORS = "adapter_model.bin"
CARD = "roli_fast_adapter"
"""Key of our own entry in the tensors' metadata, which PEFT passes over."""

PREFIX, BACKBONE = "base_model.model.", "backbone."
"""What PEFT's names, and ours, have before timm's."""

A, B = ".lora_A.weight", ".lora_B.weight"

READ = frozenset(
    (
        *("peft_type", "r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern"),
        "use_rslora",  # alpha / sqrt(r) in the place of alpha / r
    )
)
"""Fields that are read, beside those of which one value is harmless."""

HARMLESS = {
    "bias": ("none",),
    # initial values that leave the base weights alone; the others (pissa, olora, ...) change them
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
"""Field -> its values with which the function is W + alpha / r * B A."""

NO_MATTER = frozenset(
    (
        # which layers were adapted: the tensors' names tell
        *("target_modules", "exclude_modules", "modules_to_save"),
        *("layers_to_transform", "layers_pattern"),
        *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode"),
        *("peft_version", "megatron_core", "eva_config"),
        "qalora_group_size",  # of use_qalora, which is refused
    )
)
"""Fields whose value changes nothing in W + alpha / r * B A."""


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
        ArgumentError: another tuning method's modules, or no LoRA.
    """
    trees = model.card.get("tuning", [])
    if not trees or any(tree["name"] != "lora" for tree in trees):
        got = f"one with {', '.join(tree['name'] for tree in trees) or 'none'}"
        raise ArgumentError(describe("model", "a model with LoRA and nothing else", got))
    _warn_of_separate_biases(model)
    tensors, numbers = {}, {}
    for name, layer in _adapted(model).items():
        rows = layer.rows or ((0, layer.out_features),)
        tensors[PREFIX + name + A] = layer.lora_a
        tensors[PREFIX + name + B] = join_b(layer.lora_b.detach(), rows, layer.out_features)
        numbers[name] = len(layer.lora_a), layer.scale * len(layer.lora_a)
    head = model.head_name.removeprefix(BACKBONE)
    for own, parameter in model.head.named_parameters():
        tensors[f"{PREFIX}{head}.{own}"] = parameter
    card = {"backbone": _fingerprint(model), "name": model.config.name}
    rank, alpha = next(iter(numbers.values()))
    config = {
        "peft_type": "LORA",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": trees[0]["dropout"],
        "rank_pattern": {name: r for name, (r, _) in numbers.items() if r != rank},
        "alpha_pattern": {name: a for name, (_, a) in numbers.items() if a != alpha},
        "target_modules": list(numbers),
        "modules_to_save": [head],
    }
    write_tensors(Path(folder) / TENSORS, tensors, {"format": "pt", CARD: json.dumps(card)})
    write_json(Path(folder) / CONFIG, config)


def load(model: Classifier, folder: str | Path) -> list[str]:
    """Put a LoRA that PEFT or `save` wrote on a classifier without one, in place.

    Everything is checked before the model is touched. LoRAs of the file are on whole layers, also
    what `save` made of q, k or v alone: the same function (`models.save_model` keeps slices).
    A head in the file replaces the model's.

    Args:
        model: the classifier with the backbone that the adapter was trained on.
        folder: with adapter_config.json and adapter_model.safetensors or adapter_model.bin.

    Returns:
        Names of the trainable parameters, as `peft.apply`.

    Raises:
        CheckpointError: files that are missing, damaged, of another backbone, or whose
            configuration is more than plain LoRA on linear layers.
        ArgumentError: LoRA cannot be applied: the model has one already, a layer that it lacks,
            rank > width.
    """
    if _adapted(model):
        fix = "peft.merge folds it into the weights."
        raise ArgumentError(describe("model", "a classifier without LoRA", "one with it", fix))
    file = _read(model, Path(folder))
    expected, found = file.card.get("backbone"), _fingerprint(model)
    if expected not in (None, found):
        name = file.card.get("name")
        expected = f"the backbone of '{folder}', {name} with sha256 {expected}"
        fix = "Load the weights and use the mean and std that it was trained with."
        got = f"{model.config.name} with {found}"
        raise CheckpointError(describe("model", expected, got, fix))
    methods, tensors = _whole_layers(model, file)
    names: list[str] = []
    for method in methods:
        names += [name for name in apply(model, method) if name not in names]
    with torch.no_grad():
        for name, tensor in {**tensors, **file.head}.items():
            model.get_parameter(name).copy_(tensor)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    return names


def _warn_of_separate_biases(model: Classifier) -> None:
    """`peft.apply` has set timm's switch on this model; PEFT does not know of it."""
    for name in _adapted(model):
        parent, _, own = name.rpartition(".")
        if own == "qkv" and hasattr(model.backbone.get_submodule(parent), "qkv_bias_separate"):
            logger.warning(
                "%s reads the weight of qkv past the layer: set qkv_bias_separate = True on every "
                "attention of the timm network, or the LoRA has no effect there under PEFT",
                model.config.name,
            )
            return


def _adapted(model: Classifier) -> dict[str, LoraLinear]:
    """The layers with LoRA under timm's names."""
    modules = model.backbone.named_modules()
    return {name: module for name, module in modules if isinstance(module, LoraLinear)}


def _fingerprint(model: Classifier) -> str:
    """That of the backbone without its LoRA."""
    own = ("lora_a", "lora_b")
    adapters = {f"{BACKBONE}{name}.{tensor}" for name in _adapted(model) for tensor in own}
    return backbone_fingerprint(model, without=adapters)


class Adapter(NamedTuple):
    """A folder that was read: layers' (A, B) under timm's names, the head's tensors under ours."""

    config: dict[str, Any]
    card: dict[str, Any]
    layers: dict[str, tuple[Tensor, Tensor]]
    head: dict[str, Tensor]


def _read(model: Classifier, folder: Path) -> Adapter:
    """Read both files and sort the tensors into layers and head.

    Raises:
        CheckpointError: a file is missing or damaged, or does not fit the model.
    """
    with naming(folder / CONFIG, CheckpointError, CONFIG, "a JSON file that means plain LoRA"):
        config = read_json(folder / CONFIG)
        _check(config)
    old = (folder / OLD_TENSORS).is_file() and not (folder / TENSORS).exists()
    path = folder / (OLD_TENSORS if old else TENSORS)
    state = {n.removeprefix(PREFIX): t for n, t in read_state_dict(path).items()}
    names = [name.removesuffix(A) for name in state if name.endswith(A)]
    layers = {n: (state.pop(n + A), state.pop(n + B)) for n in names if n + B in state}
    _check_network(model, layers, folder)
    own = {f"{model.head_name}.{name}": p for name, p in model.head.named_parameters()}
    short = {name: name.removeprefix(BACKBONE) for name in own}
    head = {name: state.pop(short[name]) for name in own if short[name] in state}
    if state or not layers:
        expected = f"LoRA pairs of layers and the head ({', '.join(short.values())}) alone"
        got = f"'{folder}' with {', '.join(sorted(state)[:4]) or 'no LoRA'}"
        raise CheckpointError(describe("modules_to_save", expected, got))
    found, wanted = ({n: tuple(t.shape) for n, t in some.items()} for some in (head, own))
    if head and found != wanted:
        fix = "Create the model with as many classes."
        raise CheckpointError(describe("num_classes", f"a head {wanted}", f"{found}", fix))
    return Adapter(config, read_card(path, CARD), layers, head)


def _check_network(model: Classifier, layers: Mapping[str, Any], folder: Path) -> None:
    """Raise CheckpointError where no layer of the file is one of the model: it is of another
    network, whatever else does not fit."""
    own = {name for name, _ in model.backbone.named_modules()}
    if own.isdisjoint(layers) and layers:
        fix = "An adapter fits the network that it was trained on alone"
        if ".encoder.layer." in next(iter(layers)) or ".layers." in next(iter(layers)):
            fix += "; these are names of transformers, where q, k and v are layers of their own: "
            fix += "models.wrap its network (ViTForImageClassification) and load it on that"
        expected = f"the network of '{folder}', with {', '.join(list(layers)[:2])}"
        got = f"{model.config.name} without such layers"
        raise CheckpointError(describe("model", expected, got, f"{fix}."))


def _check(config: dict[str, Any]) -> None:
    """Raise ValueError unless it means W + alpha / r * B A."""
    if config["peft_type"] != "LORA":
        raise ValueError(f"`peft_type` is {config['peft_type']!r}")
    for name, value in config.items():
        harmless = value in HARMLESS[name] if name in HARMLESS else not value
        if not (harmless or name in READ | NO_MATTER):
            raise ValueError(f"`{name}` is {value!r}; with PEFT merge it, or convert it first")


def _numbers_of(config: Mapping[str, Any], layer: str) -> tuple[int, float]:
    """(rank, alpha) of the layer: those of the first pattern, a regular expression, that its name's
    end matches, as in PEFT, or the default. Of rank-stabilised LoRA (Kalajdzievski,
    arXiv:2312.03732) the alpha with which alpha / rank is its factor."""

    def value(patterns: Mapping[str, Any] | None, default: Any) -> Any:
        matching = (v for k, v in (patterns or {}).items() if re.match(rf"(.*\.)?({k})$", layer))
        return next(matching, default)

    rank = value(config.get("rank_pattern"), config["r"])
    alpha = value(config.get("alpha_pattern"), config["lora_alpha"])
    return rank, alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def _whole_layers(model: Classifier, file: Adapter) -> tuple[list[LoRA], dict[str, Tensor]]:
    """One method for each pair of rank and alpha, on whole layers, and their parameters' values.

    Raises:
        CheckpointError: tensors of another rank than the configuration's, or of other layers.
        ArgumentError: a layer that the model does not have, and the like.
    """
    groups: dict[tuple[int, float], list[str]] = {}
    for name in file.layers:
        groups.setdefault(_numbers_of(file.config, name), []).append(BACKBONE + name)
    dropout = file.config.get("lora_dropout", 0.0)
    methods = [
        LoRA(rank=rank, alpha=alpha, dropout=dropout, targets=tuple(names))
        for (rank, alpha), names in groups.items()
    ]
    tensors = {}
    for method in methods:
        for name in method.find(model):
            a, b = file.layers[name.removeprefix(BACKBONE)]
            out, width = model.get_parameter(f"{name}.weight").shape
            shapes = (method.rank, width), (out, method.rank)
            if (tuple(a.shape), tuple(b.shape)) != shapes:
                expected = f"A and B of shapes {shapes[0]} and {shapes[1]}"
                got = f"{tuple(a.shape)} and {tuple(b.shape)}"
                raise CheckpointError(describe(name, expected, got))
            tensors |= {f"{name}.lora_a": a, f"{name}.lora_b": b}
    return methods, tensors


def join_b(b: Tensor, rows: Rows, out: int) -> Tensor:
    """LoRA on ranges of output rows as one on the whole layer: B_i stacked (covered rows, r) ->
    (out, k * r).

    With slices i = 1..k of rank r, B_1 A_1 ... B_k A_k in their rows equals B A, where A stacks the
    A_i and B has B_i in the rows of slice i and the columns of A_i, zeros elsewhere.
    """
    rank = b.shape[1]
    whole, done = b.new_zeros(out, len(rows) * rank), 0
    for place, (start, stop) in enumerate(rows):
        whole[start:stop, place * rank : (place + 1) * rank] = b[done : done + stop - start]
        done += stop - start
    return whole

"""LoRA in the format of Hugging Face PEFT: adapter_config.json and adapter_model.safetensors.

PEFT itself is not needed to read or write it. Format: PEFT 0.21, `PeftModel.save_pretrained`.
"""

import contextlib
import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from roli_fast.errors import ArgumentError, CheckpointError, describe
from roli_fast.files import naming, read_json, write_json, write_tensors
from roli_fast.models import Classifier, backbone_fingerprint, read_state_dict
from roli_fast.models.weights import read_card
from roli_fast.peft import LoRA, LoraLinear, apply
from roli_fast.peft.base import from_tree
from roli_fast.peft.targets import Rows

logger = logging.getLogger("roli_fast.compat")

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
CARD = "roli_fast_adapter"
"""Key of our own entry in the tensors' metadata, which PEFT passes over."""

PREFIX, BACKBONE = "base_model.model.", "backbone."
"""What PEFT's names, and ours, have before timm's."""

A, B = ".lora_A.weight", ".lora_B.weight"

READ = frozenset(
    ("peft_type", "bias", "r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern")
)
"""Fields that are read, beside `init_lora_weights`, which is checked."""

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

HARMLESS_INITS = (True, False, "gaussian", "eva", "orthogonal")
"""Initial values that leave the base weights alone; the others (pissa, olora, ...) change them."""


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
        numbers[name] = len(layer.lora_a), _alpha(layer)
    _warn_of_separate_biases(model)
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
    if _adapted(model):
        fix = "peft.merge folds it into the weights."
        raise ArgumentError(describe("model", "a classifier without LoRA", "one with it", fix))
    file = read(model, Path(folder))
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
    methods, tensors = plan(model, file)
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


def _alpha(layer: LoraLinear) -> float:
    """The alpha with which the file's rank gives the layer's scale; whole where that is exact."""
    rank = len(layer.lora_a)
    whole = round(layer.scale * rank)
    return whole if whole / rank == layer.scale else layer.scale * rank


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


def read_config(path: Path) -> dict[str, Any]:
    """The configuration, when it means W + alpha / r * B A and nothing else.

    Raises:
        CheckpointError: a missing or damaged file, or a field that is not supported, by name.
    """
    if not path.is_file():
        raise CheckpointError(
            describe("folder", "one with adapter_config.json", f"'{path.parent}'")
        )
    with naming(path, CheckpointError, "adapter_config.json", "JSON that means plain LoRA"):
        config = read_json(path)
        _check(config)
        return config


def _check(config: Any) -> None:
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        got = config.get("peft_type") if isinstance(config, dict) else config
        raise CheckpointError(describe("peft_type", "LORA", repr(got)))
    _check_numbers(config)
    if config.get("bias", "none") != "none":
        raise _unsupported(config, "bias", "'none'")
    if config.get("init_lora_weights", True) not in HARMLESS_INITS:
        fix = "Convert it with PEFT (path_initial_model_for_weight_conversion)."
        raise _unsupported(
            config, "init_lora_weights", "one that leaves the base weights alone", fix
        )
    for name, value in config.items():
        if value and name not in READ | NO_MATTER | {"init_lora_weights"}:
            raise _unsupported(config, name, "it unset, as plain LoRA has it")


def _check_numbers(config: Mapping[str, Any]) -> None:
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    for name, pattern in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
        if not isinstance(pattern, dict):
            raise _unsupported(config, name, "{layer: number}")
        for key in pattern:
            if not re.fullmatch(r"[\w.]+", key):
                expected = "names of layers or their ends (no regular expressions)"
                raise CheckpointError(describe(name, expected, repr(key)))
    for name, pattern in (("r", ranks), ("lora_alpha", alphas)):
        for value in (config.get(name), *pattern.values()):
            kinds = int if name == "r" else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
                raise CheckpointError(describe(name, "a number > 0", repr(value)))
    dropout = config.get("lora_dropout", 0.0)
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise _unsupported(config, "lora_dropout", "a number in [0, 1)")


def _unsupported(
    config: Mapping[str, Any], name: str, expected: str, fix: str = ""
) -> CheckpointError:
    return CheckpointError(describe(name, expected, repr(config.get(name)), fix))


def numbers_of(config: Mapping[str, Any], layer: str) -> tuple[int, float]:
    """(rank, alpha) of the layer: the first pattern that is its name or its end, or the default."""

    def value(pattern: Mapping[str, Any] | None, default: Any) -> Any:
        ends = (v for key, v in (pattern or {}).items() if f".{layer}".endswith(f".{key}"))
        return next(ends, default)

    rank = value(config.get("rank_pattern"), config["r"])
    return rank, value(config.get("alpha_pattern"), config["lora_alpha"])


def make_config(
    numbers: Mapping[str, tuple[int, float]], *, dropout: float, head: str, base: tuple[str, str]
) -> dict[str, Any]:
    """What PEFT reads to open the adapter.

    Args:
        numbers: layer -> (rank, alpha).
        dropout: of all layers.
        head: name of the layer that the adapter replaces as a whole.
        base: module and class of the network, which PEFT shows and does not use.
    """
    rank, alpha = next(iter(numbers.values()))
    return {
        "peft_type": "LORA",
        "auto_mapping": {"parent_library": base[0], "base_model_class": base[1]},
        "base_model_name_or_path": None,
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "rank_pattern": {name: r for name, (r, _) in numbers.items() if r != rank},
        "alpha_pattern": {name: a for name, (_, a) in numbers.items() if a != alpha},
        "target_modules": list(numbers),
        "modules_to_save": [head],
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }


def join_b(b: Tensor, rows: Rows, out: int) -> Tensor:
    """LoRA on ranges of output rows as one on the whole layer: B_i stacked (covered rows, r) ->
    (out, k * r).

    With slices i = 1..k of rank r, B_1 A_1 ... B_k A_k in their rows equals B A, where A stacks the
    A_i and B has B_i in the rows of slice i and the columns of A_i, zeros elsewhere.
    """
    rank = b.shape[1]
    whole = b.new_zeros(out, len(rows) * rank)
    at = 0
    for i, (start, stop) in enumerate(rows):
        whole[start:stop, i * rank : (i + 1) * rank] = b[at : at + stop - start]
        at += stop - start
    return whole


def split_b(whole: Tensor, rows: Rows) -> Tensor | None:
    """The inverse of `join_b`; None where there is something outside the blocks."""
    rank = whole.shape[1] // len(rows)
    rest, parts = whole.clone(), []
    for i, (start, stop) in enumerate(rows):
        block = rest[start:stop, i * rank : (i + 1) * rank]
        parts.append(block.clone())
        block.zero_()
    return None if rest.any() else torch.cat(parts)

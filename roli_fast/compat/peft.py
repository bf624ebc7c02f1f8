"""LoRA in the format of Hugging Face PEFT: adapter_config.json and adapter_model.safetensors.

PEFT itself is not needed to read or write it. Format: PEFT 0.21, `PeftModel.save_pretrained`.
"""

import json
import logging
from pathlib import Path

import torch

from roli_fast.compat.lora_blocks import join_b
from roli_fast.compat.peft_config import make_config
from roli_fast.compat.peft_files import BACKBONE, CARD, CONFIG, PREFIX, TENSORS, A, B, plan, read
from roli_fast.errors import ArgumentError, CheckpointError, describe
from roli_fast.files import write_json, write_tensors
from roli_fast.models import Classifier, backbone_fingerprint
from roli_fast.peft import LoraLinear, apply

logger = logging.getLogger("roli_fast.compat")


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

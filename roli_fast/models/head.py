"""The classification head: how it starts, and the small file that carries it between stages."""

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Literal, get_args

import torch

from roli_fast.errors import CheckpointError, check_choice, describe
from roli_fast.files import write_tensors
from roli_fast.models.classifier import Classifier
from roli_fast.models.weights import check_finite, fingerprint, read_card, read_state_dict
from roli_fast.seeds import derived_generator

CARD = "roli_fast_head"

HeadInit = Literal["default", "small", "zero", "kaiming"]

SMALL_STD = 0.01
"""Standard deviation of the "small" head, whatever the architecture."""


def init_head(model: Classifier, init: HeadInit, *, seed: int = 0) -> None:
    """Give the head its starting values, in place.

    Args:
        model: the classifier.
        init: "default" keeps the values that timm gives this architecture; "small" draws weights
            with standard deviation 0.01 and has no bias; "zero" starts at equal logits; "kaiming"
            is the wide head of the RoLI release (Kaiming normal over fan-out, standard deviation
            sqrt(2 / classes), bias -ln 99), kept as a control.
        seed: seeds the draw.

    Raises:
        ArgumentError: another `init`, or a model without a linear head.
    """
    check_choice("init", init, get_args(HeadInit))
    head = model.head
    if init == "default":
        return
    scale = {"zero": 0.0, "small": SMALL_STD, "kaiming": math.sqrt(2 / head.out_features)}[init]
    drawn = torch.randn(head.weight.shape, generator=derived_generator(seed, "head"))
    with torch.no_grad():
        head.weight.copy_(drawn * scale)
        if head.bias is not None:
            head.bias.fill_(-math.log(99) if init == "kaiming" else 0.0)


def backbone_fingerprint(model: Classifier, *, without: Collection[str] = ()) -> str:
    """sha256 of what the features depend on: all tensors but the head's, and the normalisation.

    Args:
        model: the classifier.
        without: names of further tensors to leave out, those of an adapter say.
    """
    prefix = model.head_name + "."
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith(prefix) and name not in without
    }
    return fingerprint({**state, "mean": model.normalize.mean, "std": model.normalize.std})


def save_head(model: Classifier, path: str | Path) -> None:
    """Write the head (C x D and C floats) and the fingerprint of the backbone it was trained on."""
    card = {"backbone": backbone_fingerprint(model), "name": model.config.name}
    write_tensors(Path(path), dict(model.head.named_parameters()), {CARD: json.dumps(card)})


def load_head(model: Classifier, path: str | Path) -> None:
    """Put a saved head on `model`.

    Raises:
        CheckpointError: the file is unreadable, its shapes differ, or it was trained on another
            backbone.
    """
    state, own = read_state_dict(path), dict(model.head.named_parameters())
    found, expected = (
        ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in sorted(tensors))
        for tensors in (state, own)
    )
    if found != expected:
        fix = "The head must come from the same architecture and the same number of classes."
        got = f"'{path}' with {found}"
        raise CheckpointError(describe("head", f"tensors {expected}", got, fix))
    check_finite(state, path)
    card = read_card(path, CARD)
    if card.get("backbone") not in (None, backbone_fingerprint(model)):
        got = f"'{path}', trained on other weights of {card.get('name')}"
        fix = "Load the backbone weights that stage 1 used."
        raise CheckpointError(describe("head", "a head trained on this very backbone", got, fix))
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)

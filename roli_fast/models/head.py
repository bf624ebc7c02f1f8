"""The classification head: how it starts, and the small file that carries it between stages."""

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from roli_fast.errors import ArgumentError, CheckpointError, describe
from roli_fast.files import write_tensors
from roli_fast.models.factory import Classifier
from roli_fast.models.weights import check_finite, fingerprint, read_card, read_state_dict
from roli_fast.seeds import derive_seed

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
    if init not in get_args(HeadInit):
        known = ", ".join(get_args(HeadInit))
        raise ArgumentError(describe("init", f"one of: {known}", repr(init)))
    head = model.head
    if init == "zero":
        nn.init.zeros_(head.weight)
        if head.bias is not None:
            nn.init.zeros_(head.bias)
    elif init != "default":
        wide = init == "kaiming"
        generator = torch.Generator().manual_seed(derive_seed(seed, "head"))
        drawn = torch.randn(head.weight.shape, generator=generator)
        with torch.no_grad():
            head.weight.copy_(drawn * (math.sqrt(2 / head.out_features) if wide else SMALL_STD))
            if head.bias is not None:
                head.bias.fill_(-math.log(99) if wide else 0.0)


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
    write_tensors(Path(path), _tensors(model.head), {CARD: json.dumps(card)})


def load_head(model: Classifier, path: str | Path) -> None:
    """Put a saved head on `model`.

    Raises:
        CheckpointError: the file is unreadable, its shapes differ, or it was trained on another
            backbone.
    """
    state = read_state_dict(path)
    own = _tensors(model.head)
    if {n: t.shape for n, t in state.items()} != {n: t.shape for n, t in own.items()}:
        raise CheckpointError(
            describe(
                "head",
                f"tensors {_shapes(own)}",
                f"'{path}' with {_shapes(state)}",
                "The head must come from the same architecture and the same number of classes.",
            )
        )
    check_finite(state, path)
    card = read_card(path, CARD)
    if card.get("backbone") not in (None, backbone_fingerprint(model)):
        raise CheckpointError(
            describe(
                "head",
                "a head trained on this very backbone",
                f"'{path}', trained on other weights of {card.get('name')}",
                "Load the backbone weights that stage 1 used.",
            )
        )
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)


def _tensors(head: nn.Linear) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in head.named_parameters()}


def _shapes(state: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(state.items()))

"""The interface of a tuning method, and the table of all of them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from timm.layers.drop import DropPath
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from roli_fast.errors import ArgumentError, CheckpointError, describe
from roli_fast.models import Classifier
from roli_fast.registry import Registry
from roli_fast.seeds import derived_generator


class Inserted:
    """Mark of a module that a tuning method put into a network.

    Its own dropout is active in updates, whatever the backbone's modes; the attack puts the whole
    model into eval mode and so turns it off.
    """


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all tuning methods. A subclass is a frozen dataclass: its fields configure it.

    Args:
        backbone_dropout: the backbone's own dropout is active in updates.
        drop_path: the backbone's stochastic depth is active in updates.
        batch_norm: BN layers use the batch's statistics in updates and move the running ones; else
            they use the running ones and leave them as they are.
    """

    keeps_function: ClassVar[bool] = True
    """Whether the logits right after `apply` are those of before."""

    backbone_dropout: bool = False
    drop_path: bool = False
    batch_norm: bool = False

    def prepare(self, model: Classifier, generator: torch.Generator) -> list[str]:
        """Insert what the method adds and return the names of the parameters that train.

        Everything is checked before the model is touched. Random initial values are drawn from
        `generator`, which is the CPU's, so that they are the same on every device.
        """
        raise NotImplementedError

    def train_mode(self, model: Classifier) -> None:
        """Put the model into the mode in which the method updates it."""
        model.train(self.backbone_dropout)
        for module in model.modules():
            if isinstance(module, DropPath):
                module.train(self.drop_path)
            elif isinstance(module, _BatchNorm):
                module.train(self.batch_norm)
            elif isinstance(module, Inserted) and isinstance(module, nn.Module):
                module.train(any(p.requires_grad for p in module.parameters(recurse=False)))


METHODS: Registry[type[Method]] = Registry("tuning")


def apply(model: Classifier, method: Method, *, seed: int = 0) -> list[str]:
    """Prepare `model` for `method` in place.

    What the method adds stands in the model's card from then on, so that a file of the model can be
    loaded again (`models.load`).

    Args:
        model: the classifier.
        method: the tuning method with its options.
        seed: seeds the initial values of what the method adds; the global random state is left
            untouched.

    Returns:
        The names of the trainable parameters. They require grad and no other does; optimiser
        groups, checkpoints and reports use this list.

    Raises:
        ArgumentError: the method cannot be applied to this model, with the reason.
    """
    before = {name for name, _ in model.named_parameters()}
    names = method.prepare(model, derived_generator(seed, "tuning"))
    parameters = dict(model.named_parameters())
    chosen = set(names)
    unknown = chosen - parameters.keys()
    if unknown or not names:
        raise ArgumentError(
            describe("method", "names of parameters of the model", sorted(unknown) or "none")
        )
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in chosen)
    if parameters.keys() - before:
        tree = {"name": METHODS.name_of(type(method)), **asdict(method)}
        model.card["tuning"] = [*model.card.get("tuning", []), tree]
    return names


def head_names(model: Classifier) -> list[str]:
    """The head's parameters, which every method trains."""
    return [f"{model.head_name}.{name}" for name, _ in model.head.named_parameters()]


def rebuild(model: Classifier, trees: list[Mapping[str, Any]]) -> None:
    """Insert again what the card of a saved model lists.

    Raises:
        CheckpointError: a method or an option that this version does not know.
    """
    for tree in trees:
        options: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in tree.items()
        }
        try:
            method = METHODS[options.pop("name")](**options)
        except (ArgumentError, TypeError) as error:
            raise CheckpointError(
                describe("path", "a model with tuning methods of this version", dict(tree))
            ) from error
        apply(model, method)
    for parameter in model.parameters():
        parameter.requires_grad_(True)

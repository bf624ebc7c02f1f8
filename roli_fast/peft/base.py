"""The interface of a tuning method, and the table of all of them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from timm.layers.drop import DropPath
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from roli_fast.errors import ArgumentError, CheckpointError, describe
from roli_fast.models.classifier import Classifier, find_head
from roli_fast.registry import Registry
from roli_fast.seeds import derived_generator


class Inserted:
    """Mark of a module that a tuning method put into a network.

    Its own dropout is active in updates while it trains, whatever the backbone's modes; the attack
    puts the whole model into eval mode and so turns it off.
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

    backbone_dropout: bool = False
    drop_path: bool = False
    batch_norm: bool = False

    keeps_function: ClassVar[bool] = True
    """Whether the logits right after `apply` are those of before."""

    def prepare(self, model: nn.Module, generator: torch.Generator) -> list[str]:
        """Insert what the method adds and return the names of the parameters that train.

        Everything is checked before the model is touched. Random initial values are drawn from
        `generator`, which is the CPU's, so that they are the same on every device.
        """
        raise NotImplementedError

    def train_mode(self, model: nn.Module) -> None:
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


def apply(model: nn.Module, method: Method, *, seed: int = 0) -> list[str]:
    """Prepare `model` for `method` in place.

    What the method adds to a classifier stands in its card from then on, so that a file of the
    model can be loaded again (`models.load`).

    Args:
        model: a classifier, or a plain timm network.
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
    parameters, chosen = dict(model.named_parameters()), set(names)
    assert chosen and chosen <= parameters.keys(), chosen - parameters.keys()
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in chosen)
    if parameters.keys() - before and isinstance(model, Classifier):
        tree = {"name": METHODS.name_of(type(method)), **asdict(method)}
        model.card["tuning"] = [*model.card.get("tuning", []), tree]
    return names


def head_names(model: nn.Module) -> list[str]:
    """The head's parameters, which every method trains."""
    path, head = find_head(model)
    return [f"{path}.{name}" for name, _ in head.named_parameters()]


def unfit(method: str, model: str, reason: str, fix: str) -> ArgumentError:
    """The error of a method that `model` has no place for."""
    got = f"{method} for {model}, {reason}"
    return ArgumentError(describe("tuning", "a method that fits the model", got, fix))


def from_tree(tree: Mapping[str, Any]) -> Method:
    """The method that a card lists as {"name": ..., option: value}.

    Raises:
        CheckpointError: a method or an option that this version does not know.
    """
    try:
        options: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in tree.items()
        }
        return METHODS[options.pop("name")](**options)
    except (ArgumentError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(
            describe("path", "a model with tuning methods of this version", repr(tree))
        ) from error


def rebuild(model: Classifier, trees: list[Mapping[str, Any]]) -> None:
    """Insert again what the card of a saved model lists.

    Raises:
        CheckpointError: a method or an option that this version does not know.
    """
    for tree in trees:
        apply(model, from_tree(tree))
    for parameter in model.parameters():
        parameter.requires_grad_(True)

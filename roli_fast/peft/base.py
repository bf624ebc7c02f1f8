"""The interface of a tuning method, and the table of all of them."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, ClassVar

import torch

from roli_fast.errors import ArgumentError, CheckpointError, describe
from roli_fast.models import Classifier
from roli_fast.registry import Registry
from roli_fast.seeds import derived_generator


class Method:
    """Base of all tuning methods. A subclass is a frozen dataclass: its fields configure it."""

    keeps_function: ClassVar[bool] = True
    """Whether the logits right after `apply` are those of before."""

    def prepare(self, model: Classifier, generator: torch.Generator) -> list[str]:
        """Insert what the method adds and return the names of the parameters that train.

        Everything is checked before the model is touched. Random initial values are drawn from
        `generator`, which is the CPU's, so that they are the same on every device.
        """
        raise NotImplementedError

    def train_mode(self, model: Classifier) -> None:
        """Put the model into the mode in which the method updates it."""
        raise NotImplementedError


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
        assert is_dataclass(method), "every method is"
        tree = {"name": METHODS.name_of(type(method)), **asdict(method)}
        model.card["tuning"] = [*model.card.get("tuning", []), tree]
    return names


def head_names(model: Classifier) -> list[str]:
    """The head's parameters, which every method trains."""
    return [f"{model.head_name}.{name}" for name, _ in model.head.named_parameters()]


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

"""The interface of a tuning method, and the table of all of them."""

from roli_fast.errors import ArgumentError, describe
from roli_fast.models import Classifier
from roli_fast.registry import Registry


class Method:
    """Base of all tuning methods. A subclass is a frozen dataclass: its fields configure it."""

    def prepare(self, model: Classifier) -> list[str]:
        """Insert what the method adds and return the names of the parameters that train."""
        raise NotImplementedError

    def train_mode(self, model: Classifier) -> None:
        """Put the model into the mode in which the method updates it."""
        raise NotImplementedError


METHODS: Registry[type[Method]] = Registry("tuning")


def apply(model: Classifier, method: Method) -> list[str]:
    """Prepare `model` for `method` in place.

    Returns:
        The names of the trainable parameters. They require grad and no other does; optimiser
        groups, checkpoints and reports use this list.
    """
    names = method.prepare(model)
    chosen = set(names)
    unknown = chosen - {name for name, _ in model.named_parameters()}
    if unknown or not names:
        raise ArgumentError(
            describe("method", "names of parameters of the model", sorted(unknown) or "none")
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return names

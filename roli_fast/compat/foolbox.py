"""foolbox (3.3): our attacks with its calls, and its models under our attacks.

    import foolbox
    from roli_fast import PGD
    from roli_fast.compat.foolbox import as_foolbox_attack

    fmodel = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), preprocessing=dict(mean=..., ...))
    attack = as_foolbox_attack(PGD(steps=40))   # steps of eps / 4
    raw, clipped, is_adv = attack(fmodel, images, labels, epsilons=[0.0, 2 / 255, 8 / 255])

A plain network needs no adapter: `foolbox.PyTorchModel(network, bounds=(0, 1))`.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from torch import Generator, nn

from roli_fast.attacks import Attack
from roli_fast.compat.peers import UserAttributes, aimed, library
from roli_fast.compat.view import View
from roli_fast.errors import ArgumentError, describe


def as_foolbox_attack(attack: Attack, generator: Generator | None = None) -> Any:
    """A `foolbox.attacks.base.FixedEpsilonAttack` around one of our attacks.

    eps and bounds are those of the call and of its model, whatever the attack has. The criterion
    is `Misclassification` (or labels), or, for PGD and Square, `TargetedMisclassification`. Of a
    model in train mode, weights, gradients, modes and running statistics stay as they are.

    Args:
        attack: an attack with the fields norm, eps and bounds.
        generator: source of its draws; None takes torch's global generator.

    Raises:
        MissingPackageError: foolbox is not installed.
    """
    return _attack_class()(attack, generator)


def from_foolbox_model(fmodel: Any) -> nn.Module:
    """A foolbox model as a module for our attacks: images within its bounds -> logits.

    Its preprocessing is in it. The network inside is found, so that an attack can freeze it and put
    it into eval mode; a model of one's own that hides its network is run as it is.
    """
    return View(_network_of(fmodel), fmodel)


def _network_of(fmodel: Any) -> nn.Module | None:
    """The network in a `PyTorchModel`, also in one whose bounds were transformed."""
    inner = getattr(fmodel, "_model", None)
    if inner is None or isinstance(inner, nn.Module):
        return inner
    if not inspect.isfunction(inner):
        return _network_of(inner)
    network = inspect.getclosurevars(inner).nonlocals.get("model")
    return network if isinstance(network, nn.Module) else None


@cache
def _attack_class() -> Callable[..., Any]:
    foolbox = library("foolbox", "foolbox")
    eagerpy = library("eagerpy", "foolbox")

    class RoliFastAttack(foolbox.attacks.base.FixedEpsilonAttack, UserAttributes):
        """One of roli_fast's attacks."""

        def __init__(self, attack: Any, generator: Generator | None) -> None:
            self.attack, self.generator, self._built = attack, generator, True

        @property
        def distance(self) -> Any:
            return getattr(foolbox.distances, self.attack.norm)

        def run(self, model: Any, inputs: Any, criterion: Any, *, epsilon: float) -> Any:
            wrapped, restore = eagerpy.astensor_(inputs)
            criterion = foolbox.attacks.base.get_criterion(criterion)
            if epsilon == 0:
                return restore(wrapped)
            bounds = tuple(float(value) for value in model.bounds)
            attack = replace(self.attack, eps=float(epsilon), bounds=bounds)
            if isinstance(criterion, foolbox.criteria.TargetedMisclassification):
                y, options = aimed(attack, criterion.target_classes.raw)
            elif isinstance(criterion, foolbox.criteria.Misclassification):
                y, options = criterion.labels.raw, {}
            else:
                expected = "Misclassification or TargetedMisclassification"
                raise ArgumentError(describe("criterion", expected, repr(criterion)))
            network = from_foolbox_model(model)
            found = attack(network, wrapped.raw, y, self.generator, **options)
            return restore(eagerpy.astensor(found))

    return RoliFastAttack

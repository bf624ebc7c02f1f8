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

from roli_fast.attacks import FAB, Attack
from roli_fast.attacks.closest import Closest
from roli_fast.compat.peers import UserAttributes, aimed, library
from roli_fast.compat.view import View
from roli_fast.errors import ArgumentError, describe
from roli_fast.norms import NORMS


def as_foolbox_attack(attack: Attack, generator: Generator | None = None) -> Any:
    """One of our attacks as foolbox's `FixedEpsilonAttack`.

    FAB, DeepFool and CW, which look for the closest adversarial image, are `MinimizationAttack`s:
    one search serves all epsilons, and `epsilons=None` sets no limit.

    eps and bounds are those of the call and of its model, whatever the attack has. The criterion
    is `Misclassification` (or labels), or `TargetedMisclassification` for attacks that take a
    `target`. Of a model in train mode, weights, gradients, modes and running statistics stay as
    they are.

    Args:
        attack: an attack with the fields norm, eps and bounds.
        generator: source of its draws; None takes torch's global generator.

    Raises:
        MissingPackageError: foolbox is not installed.
    """
    return _attack_class(isinstance(attack, (FAB, Closest)))(attack, generator)


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
def _attack_class(minimal: bool) -> Callable[..., Any]:
    foolbox = library("foolbox", "foolbox")
    eagerpy = library("eagerpy", "foolbox")
    base = foolbox.attacks.base

    class RoliFastAttack(
        base.MinimizationAttack if minimal else base.FixedEpsilonAttack, UserAttributes
    ):
        """One of roli_fast's attacks."""

        def __init__(self, attack: Any, generator: Generator | None) -> None:
            self.attack, self.generator, self._built = attack, generator, True

        @property
        def distance(self) -> Any:
            return getattr(foolbox.distances, self.attack.norm)

        def run(
            self,
            model: Any,
            inputs: Any,
            criterion: Any,
            *,
            epsilon: float | None = None,
            early_stop: float | None = None,
        ) -> Any:
            wrapped, restore = eagerpy.astensor_(inputs)
            criterion = base.get_criterion(criterion)
            if epsilon == 0:
                return restore(wrapped)
            low, high = bounds = tuple(float(value) for value in model.bounds)
            if epsilon is None:  # as far as the box goes
                norm = NORMS[self.attack.norm]
                epsilon = (high - low) * norm.largest(wrapped.raw[0].numel())
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

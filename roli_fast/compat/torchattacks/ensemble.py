"""Several attacks one after another, with torchattacks' interface."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from roli_fast.attacks import AttackResult
from roli_fast.attacks.ensemble import total
from roli_fast.attacks.objective import is_right
from roli_fast.compat.torchattacks.attack import Attack, logger
from roli_fast.compat.torchattacks.gradient import need
from roli_fast.compat.torchattacks.view import Modes
from roli_fast.engine import InputGradient
from roli_fast.engine.input_gradient import check_tensor
from roli_fast.errors import ArgumentError, describe


class MultiAttack(Attack):
    """Each attack in turn, on the images that those before left right.

    Normalisation, modes, model and device that are set here are set for every one of them. `save`
    is that of the other attacks (theirs returns the rates of the parts too).

    Args:
        attacks: two or more, on one and the same model.
        verbose: log how many images are still right after each.
    """

    def __init__(self, attacks: Sequence[Attack], verbose: bool = False) -> None:
        if len(attacks) < 2:
            raise ArgumentError(describe("attacks", "two attacks or more", len(attacks)))
        if len({id(attack.model) for attack in attacks}) != 1:
            fix = "Build them from the same object."
            raise ArgumentError(describe("attacks", "attacks on one model", "several models", fix))
        self.attacks: Sequence[Attack] = ()
        super().__init__("MultiAttack", attacks[0].model)
        self.attacks = attacks
        self.verbose = verbose
        self.device = attacks[0].device

    def run(
        self, inputs: Tensor, labels: Tensor | None, sample_ids: Tensor | None = None
    ) -> AttackResult:
        """In the form of the inputs: each attack un-normalises for itself."""
        check_tensor("inputs", inputs)
        check_tensor("labels", need(labels))
        given, labels = inputs.detach().to(self.device), need(labels).to(self.device)
        ids = torch.arange(len(given), device=given.device) if sample_ids is None else sample_ids
        found, left = given.clone(), torch.arange(len(given), device=given.device)
        costs = []
        for attack in self.attacks:
            result = attack.run(given[left], labels[left], ids[left])
            costs.append(result.cost)
            fooled = result.fooled
            if fooled is None or attack.targeted:  # flags of a target say whether it was reached
                with InputGradient(attack.view(Modes())) as engine:
                    logits = engine.evaluate(result.x_adv, labels[left])[1]
                fooled = ~is_right(logits, labels[left])
                costs.append(engine.cost)
            found[left[fooled]] = attack.in_form(result.x_adv)[fooled]
            left = left[~fooled]
            if self.verbose:
                shown = (attack.attack, len(left), len(given))
                logger.info("after %s %d of %d images are right", *shown)
            if len(left) == 0:
                break
        flags = torch.ones(len(given), dtype=torch.bool, device=given.device)
        flags[left] = False
        return AttackResult(found, total(costs), flags)

    def in_form(self, images: Tensor) -> Tensor:
        """They are."""
        return images

    def _each(self, call: Callable[[Attack], object]) -> None:
        for attack in self.attacks:
            call(attack)

    def set_model(self, model: Any) -> None:
        """For all of them."""
        super().set_model(model)
        self._each(lambda attack: attack.set_model(model))

    def set_device(self, device: torch.device | str) -> None:
        """For all of them."""
        super().set_device(device)
        self._each(lambda attack: attack.set_device(device))

    def set_normalization_used(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """For all of them."""
        super().set_normalization_used(mean, std)
        self._each(lambda attack: attack.set_normalization_used(mean, std))

    def set_model_training_mode(
        self,
        model_training: bool = False,
        batchnorm_training: bool = False,
        dropout_training: bool = False,
    ) -> None:
        """For all of them."""
        modes = (model_training, batchnorm_training, dropout_training)
        super().set_model_training_mode(*modes)
        self._each(lambda attack: attack.set_model_training_mode(*modes))

    def set_return_type(self, type: str) -> None:
        """Of the whole; its attacks stay at "float"."""
        raise ArgumentError(describe("type", "'float' for a MultiAttack", repr(type)))

"""Several attacks one after another, with torchattacks' interface."""

from collections.abc import Sequence

import torch
from torch import Tensor

from roli_fast.attacks import AttackResult
from roli_fast.attacks.ensemble import total
from roli_fast.attacks.objective import is_right
from roli_fast.compat.torchattacks.attack import Attack, logger
from roli_fast.compat.torchattacks.gradient import need
from roli_fast.compat.view import Modes
from roli_fast.engine import InputGradient
from roli_fast.errors import ArgumentError, describe


class MultiAttack(Attack):
    """Each attack in turn, on the images that those before left right.

    `save` is that of the other attacks (theirs returns the rates of the parts too).

    Args:
        attacks: two or more, on one and the same model.
        verbose: log how many images are still right after each.
    """

    unread = Attack.unread | {
        *("check_validity", "_accumulate_multi_atk_records", "_multi_atk_records"),
        *("_clear_multi_atk_records", "_covert_to_success_rates", "_return_sr_record"),
        "_update_multi_atk_records",
    }

    def __init__(self, attacks: Sequence[Attack], verbose: bool = False) -> None:
        if len(attacks) < 2:
            raise ArgumentError(describe("attacks", "two attacks or more", len(attacks)))
        if len({id(attack.model) for attack in attacks}) != 1:
            fix = "Build them from the same object."
            raise ArgumentError(describe("attacks", "attacks on one model", "several models", fix))
        super().__init__("MultiAttack", attacks[0].model, attacks=attacks, verbose=verbose)
        self.device = attacks[0].device

    def search(
        self, images: Tensor, labels: Tensor | None, sample_ids: Tensor | None = None
    ) -> AttackResult:
        """In the form of the inputs, where the parts un-normalise for themselves."""
        labels = need(labels)
        ids = torch.arange(len(images), device=images.device) if sample_ids is None else sample_ids
        found, left = images.clone(), torch.arange(len(images), device=images.device)
        costs = []
        for attack in self.attacks:
            if attack.overrides("__call__", Attack):
                moved, fooled = attack(images[left], labels[left]), None
            else:
                result = attack.run(images[left], labels[left], ids[left])
                moved, fooled = attack.in_form(result.x_adv), result.fooled
                costs.append(result.cost)
            if fooled is None or not self._has_the_flags_of(attack):
                with InputGradient(self.view(Modes())) as engine:
                    logits = engine.evaluate(moved, labels[left])[1]
                fooled = ~is_right(logits, labels[left])
                costs.append(engine.cost)
            found[left[fooled]] = moved[fooled]
            left = left[~fooled]
            if self.verbose:
                shown = (attack.attack, len(left), len(images))
                logger.info("after %s %d of %d images are right", *shown)
            if len(left) == 0:
                break
        flags = torch.ones(len(images), dtype=torch.bool, device=images.device)
        flags[left] = False
        return AttackResult(found, total(costs), flags)

    def _has_the_flags_of(self, attack: Attack) -> bool:
        """Whether an image that fools the part fools this attack's own model; those of a target
        say whether that was reached."""
        judges = any(one.overrides("get_logits", Attack) for one in (self, attack))
        return not attack.targeted and attack.model is self.model and not judges

    def set_return_type(self, type: str) -> None:
        """Of the whole; its attacks stay at "float"."""
        raise ArgumentError(describe("type", "'float' for a MultiAttack", repr(type)))

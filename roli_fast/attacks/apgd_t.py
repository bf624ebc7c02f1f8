"""Targeted APGD (Croce & Hein 2020, arXiv:2003.01690, section 4.2)."""

from dataclasses import dataclass

from torch import Tensor

from roli_fast.attacks.apgd import APGD
from roli_fast.attacks.base import ATTACKS, check_steps
from roli_fast.attacks.objective import Goal, check_loss_name, most_likely_others


@ATTACKS.register("apgd-t")
@dataclass(frozen=True)
class APGDT(APGD):
    """APGD towards the likeliest wrong classes, one after another, each `restarts` times.

    The order of the classes is that of the clean logits, taken once: one forward in all. A search
    ends for an image with any misclassification, not only as the target. All fields are those of
    `APGD`, but:

    Args:
        loss: "dlr", the targeted difference of logits ratio, "ce" or "margin".
        targets: number of wrong classes, 9 in AutoAttack (5 in l1); a model with fewer has them
            all attacked, and the result says so.
    """

    loss: str = "dlr"
    targets: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss_name(self.loss, targeted=True)
        check_steps("targets", self.targets)

    @property
    def label(self) -> str:
        """ "apgd-t-dlr-100"."""
        return self._labelled(f"apgd-t-{self.loss}-{self.steps}")

    @property
    def _needs_clean(self) -> bool:
        return True

    def _goals(self, y: Tensor, clean: Tensor | None) -> tuple[list[Goal], tuple[str, ...]]:
        assert clean is not None
        order = most_likely_others(clean, y, self.targets)
        goals = [
            Goal(self.loss, y, target.contiguous(), any_class=True)
            for target in order.unbind(1)
            for _ in range(self.restarts)
        ]
        notes = ()
        if order.shape[1] < self.targets:
            classes = clean.shape[1]
            notes = (f"{order.shape[1]} targets, not {self.targets}: there are {classes} classes",)
        return goals, notes

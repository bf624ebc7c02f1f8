"""FAB-T: FAB towards one class after another (Croce & Hein, "Reliable evaluation of adversarial
robustness with an ensemble of diverse parameter-free attacks", ICML 2020, arXiv:2003.01690)."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from roli_fast.attacks.base import ATTACKS, check_steps
from roli_fast.attacks.fab import FAB
from roli_fast.attacks.fab_search import Planes, TargetPlane


@ATTACKS.register("fab-t")
@dataclass(frozen=True)
class FABT(FAB):
    """FAB that linearises one boundary at a time, so that a step costs one backward and not C - 1.

    The classes of highest clean logits take their turn, likeliest first. Any image that is not
    classified as y counts, whatever its class. What has been found within eps takes no part in the
    runs towards later classes. The other arguments are those of `FAB`.

    Args:
        targets: number of classes to go towards; a model with fewer others has all of them taken.
    """

    targets: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps("targets", self.targets)

    @property
    def label(self) -> str:
        """ "fab-t-100" for a hundred steps towards each class; restarts follow."""
        return self._labelled("fab-t")

    def planes(self, logits: Tensor, y: Tensor) -> Iterator[Planes]:
        """Ranks 2, 3, ... of the clean logits; y itself has rank 1 where it is searched at all."""
        ranked = logits.sort(dim=1).indices
        for rank in range(min(self.targets, logits.shape[1] - 1)):
            yield TargetPlane(ranked[:, -2 - rank])

"""The fast gradient sign method (Goodfellow et al., "Explaining and Harnessing Adversarial
Examples", ICLR 2015, section 4)."""

from dataclasses import dataclass

from torch import Generator, Tensor

from roli_fast.attacks.base import ATTACKS, Ball
from roli_fast.attacks.single_step import SingleStep


@ATTACKS.register("fgsm")
@dataclass(frozen=True)
class FGSM(SingleStep):
    """One step of length eps from the image itself; in l2 and l1 along their steepest ascent."""

    @property
    def label(self) -> str:
        """ "fgsm"."""
        return "fgsm"

    def start(
        self, x: Tensor, ball: Ball, generator: Generator | None, sample_ids: Tensor | None
    ) -> Tensor:
        """The image itself."""
        return x.clone()

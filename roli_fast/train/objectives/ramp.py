"""RAMP: robust in one norm stays so while another is added (Jiang & Singh, NeurIPS 2024,
arXiv:2402.06827, equations 1 to 3)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from roli_fast.attacks import Attack
from roli_fast.losses import cross_entropy, logit_pairing, trades
from roli_fast.threat import check_positive
from roli_fast.train.objectives.base import (
    OBJECTIVES,
    Objective,
    Step,
    Terms,
    check_norms,
    in_norms,
    is_independent,
    logits_of,
    searched,
)


@OBJECTIVES.register("ramp")
@dataclass(frozen=True)
class RAMP(Objective):
    """L_max + weight * L_pair, on images attacked in two norms: x_q in `source`, x_r in `target`.

    L_max is the mean cross-entropy on the one of x_q and x_r with the larger attack loss, as the
    attack measured it in eval mode (on a tie x_q). L_pair pulls the predictions on x_r to those on
    x_q where these are right: `losses.logit_pairing`. An update in several parts, or processes,
    takes L_pair's mean over the right samples of each part by itself.

    Both attacks are one search, attack multi_apgd; with 10 steps each a sample costs 23 forwards,
    19 backwards to the input and 2 to the weights where the network is independent of the batch
    (`is_independent`): L_max is gathered from the one forward of x_q and x_r. Else, with BatchNorm
    in training mode or dropout (LoRA's is 0.1 unless it is set), the point of L_max is forwarded by
    itself, as in the authors' code: 24, 19 and 3.

    The pair: with source and target null it is the two of the threat's norms in which the model's
    measured robust accuracy is lowest before the stage's first update, the lowest the target. The
    paper's rule, the two balls of largest volume, is not used: it does not give the pairs of its
    own experiments. On CIFAR-10 at the usual radii (ln V is -8505 for linf 8/255, -10109 for l2
    0.5, -11838 for l1 12) it says linf and l2, where the experiments have linf and l1.

    Args:
        source: norm in which the model is robust and stays so; null with target null: measured.
        target: norm in which it is to become robust.
        weight: lambda, of the pairing. 1.5 is that of the released scripts for fine-tuning, where
            the paper's text says 0.5; from scratch they say 5 and 2, for a ResNet-50 on ImageNet 3
            and 0.5. More of it lowers clean accuracy.
        trades_beta: above 0 it takes TRADES' loss in the place of L_max, as the authors do for
            WRN-28-10, with 6: CE(f(x), y) + trades_beta * KL(p(x) || p(x_max)), x_max the point of
            L_max. It costs one forward and one backward more.
    """

    source: str | None = None
    target: str | None = None
    weight: float = 1.5
    trades_beta: float = 0.0

    def __post_init__(self) -> None:
        named = [norm for norm in (self.source, self.target) if norm is not None]
        if named:  # or neither, to have them measured
            check_norms("source and target", named, fewest=2)
        check_positive("weight", self.weight, zero=True)
        check_positive("trades_beta", self.trades_beta, zero=True)

    @property
    def needs_accuracies(self) -> bool:
        """Whether the pair is to be measured."""
        return self.source is None

    def settled(self, accuracies: Mapping[str, float]) -> "RAMP":
        """With the two norms of lowest accuracy as the pair, the lowest the target."""
        if not self.needs_accuracies:
            return self
        lowest = sorted(accuracies, key=lambda norm: accuracies[norm])
        return replace(self, target=lowest[0], source=lowest[1])

    def check(self, attack: Attack | None) -> None:
        """The attack must be multi_apgd, with both norms, or two to choose from."""
        in_norms(attack, None if self.needs_accuracies else self._pair, "ramp", fewest=2)

    def images(self, attack: Attack) -> int:
        return 3 if self.trades_beta else 2

    @property
    def _pair(self) -> tuple[str, str]:
        assert self.source is not None and self.target is not None, "settled before"
        return self.source, self.target

    def on_attacked(self, step: Step, attack: Attack) -> Terms:
        """The logits are those on the points of L_max."""
        source, target = self._pair
        search = in_norms(attack, self._pair, "ramp").search
        found, y = searched(search, step).found, step.batch.y
        q, r = found[source], found[target]
        higher = q.loss >= r.loss
        apart = not is_independent(step.model)
        images = [q.x_adv, r.x_adv]
        images += [_pick(higher, q.x_adv, r.x_adv)] if apart else []
        images += [step.batch.x] if self.trades_beta else []
        logits = logits_of(step.model, images, step.engine)
        highest = logits[2] if apart else _pick(higher, logits[0], logits[1])
        if self.trades_beta:
            loss = trades(logits[-1], highest, y, beta=self.trades_beta)
        else:
            loss = cross_entropy(highest, y).mean()
        pairing = logit_pairing(logits[0], logits[1], y)
        return Terms(loss + self.weight * pairing, highest.detach())


def _pick(first: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Sample by sample `a` where `first` (B,) says so, else `b`."""
    return torch.where(first.view(-1, *[1] * (a.ndim - 1)), a, b)

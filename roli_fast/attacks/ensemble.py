"""Several searches, one after another, each on what those before left right."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from roli_fast.attacks import recheck
from roli_fast.attacks.base import Attack, AttackInputs, AttackResult, restart_generators
from roli_fast.engine import Cost
from roli_fast.ops.fused import check_sample_ids


@dataclass(frozen=True)
class EnsembleResult(AttackResult):
    """What several searches found.

    `fooled_by` (B,), int64: which of the attack's parts fooled a sample, -1 where none did, also
    where it was wrong to begin with. `lost` counts the times that a search took an image for
    adversarial (in low precision, or by a draw of the model) and the plain model classified it
    right when asked again; an image can be lost by every part.
    """

    fooled_by: Tensor | None = None
    lost: int = 0


@dataclass
class AttackState:
    """How each sample of a batch stands; written by `search_in_turn`.

    Args:
        x_adv: images like x, each as it is or as what fooled the model.
        fooled: bool (B,).
        fooled_by: number of the search that fooled it, (B,), or -1.
        costs: of each search.
        notes: what the searches had to say.
        counts: how many images each of them fooled, in words.
        lost: see `EnsembleResult`.
    """

    x_adv: Tensor
    fooled: Tensor
    fooled_by: Tensor
    costs: list[Cost]
    notes: list[str]
    counts: list[str]
    lost: int = 0

    @staticmethod
    def begin(x: Tensor, right: Tensor) -> "AttackState":
        """Nothing found yet; what is not `right` (B,) is fooled as it is."""
        nobody = torch.full(right.shape, -1, device=x.device)
        return AttackState(x.clone(), ~right, nobody, [], [], [])

    def result(self, cost: Cost, notes: Iterable[str] = ()) -> EnsembleResult:
        """The result, with `cost` added to that of the searches and `notes` before theirs."""
        return EnsembleResult(
            self.x_adv,
            total([cost, *self.costs]),
            self.fooled,
            (*notes, *self.notes, *self.counts),
            fooled_by=self.fooled_by,
            lost=self.lost,
        )


def search_in_turn(
    parts: Sequence[Attack],
    inputs: AttackInputs,
    state: AttackState,
    names: Sequence[str] = (),
) -> None:
    """Run each part on the samples that are not yet fooled.

    What a part takes for adversarial is shown once more to the plain model, and counts only if it
    still fools: 1 forward a part on what it found. What is lost that way after a search in low
    precision is searched again by the plain model (see `recheck.search`).

    Args:
        parts: the searches; each gets its own generator, all derived from one draw.
        inputs: what is asked about all samples.
        state: where the samples stand; updated.
        names: what the notes call the parts; their labels by default.
    """
    check_sample_ids(inputs.sample_ids, inputs.x)
    generators = restart_generators(inputs.generator, len(parts), inputs.x.device)
    for number, (part, generator) in enumerate(zip(parts, generators, strict=True)):
        rows = (~state.fooled).nonzero()[:, 0]
        if len(rows) == 0:
            break
        checked = recheck.search(part, replace(inputs.at(rows), generator=generator))
        found, lost = checked.result, int(checked.lost.sum())
        assert found.fooled is not None
        name = names[number] if names else part.label
        text = f"{name}: fooled {int(found.fooled.sum())} of {len(rows)}"
        if lost:
            text += f"; {lost} found were right when asked again"
        if checked.regained:
            text += f", {checked.regained} of these were found anew by the plain model"
        state.costs.append(found.cost)
        state.notes += [f"{name}: {note}" for note in found.notes]
        state.counts.append(text)
        state.lost += lost + (found.lost if isinstance(found, EnsembleResult) else 0)
        gone = rows[found.fooled]
        state.x_adv[gone] = found.x_adv[found.fooled]
        state.fooled[gone] = True
        state.fooled_by[gone] = number


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of several costs."""
    return sum(costs, Cost(0, 0))

"""Several searches, one after another, each on what those before left right."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from roli_fast.attacks import recheck
from roli_fast.attacks.base import Attack, AttackInputs, AttackResult
from roli_fast.attacks.restarts import restart_generators
from roli_fast.engine import Cost
from roli_fast.ops.fused import check_sample_ids


@dataclass(frozen=True)
class EnsembleResult(AttackResult):
    """What several searches found.

    `fooled_by` (B,), int64: which of the attack's parts fooled a sample first, -1 where none did,
    also where it was wrong to begin with. `lost` counts the times that a search took an image for
    adversarial (in low precision, or by a draw of the model) and the plain model classified it
    right when asked again; an image can be lost by every part. `robust_under`: where every part has
    attacked all images, which of them, bool (B,), each left right.
    """

    fooled_by: Tensor | None = None
    lost: int = 0
    robust_under: dict[str, Tensor] = field(default_factory=dict)


def search_in_turn(
    parts: Sequence[Attack],
    inputs: AttackInputs,
    right: Tensor,
    names: Sequence[str] = (),
    *,
    every: bool = False,
) -> EnsembleResult:
    """Run each part on the samples that are not yet fooled.

    What a part takes for adversarial is shown once more to the plain model, and counts only if it
    still fools: 1 forward a part on what it found. What is lost that way after a search in low
    precision is searched again by the plain model (see `recheck.search`).

    Args:
        parts: the searches; each gets its own generator, all derived from one draw.
        inputs: what is asked about all samples.
        right: bool (B,), who is to be attacked; the others are fooled as they are.
        names: what the notes call the parts; their labels by default.
        every: run each part on all samples that are right as they are.

    Returns:
        Each image as it is or as what fooled the model; the notes of the parts, and then how many
        images each of them fooled, in words.
    """
    check_sample_ids(inputs.sample_ids, inputs.x)
    names = names or [part.label for part in parts]
    generators = restart_generators(inputs.generator, len(parts), inputs.x.device)
    x_adv, fooled = inputs.x.clone(), ~right
    fooled_by = torch.full(right.shape, -1, device=right.device)
    robust_under = {name: right.clone() for name in names} if every else {}
    cost, notes, counts, all_lost = Cost(0, 0), list[str](), list[str](), 0
    for number, (name, part, source) in enumerate(zip(names, parts, generators, strict=True)):
        rows = (right if every else ~fooled).nonzero()[:, 0]
        if len(rows) == 0:
            break
        checked = recheck.search(part, replace(inputs.at(rows), generator=source))
        found, lost = checked.result, int(checked.lost.sum())
        assert found.fooled is not None
        text = f"{name}: fooled {int(found.fooled.sum())} of {len(rows)}"
        if lost:
            text += f"; {lost} found were right when asked again"
        if checked.regained:
            text += f", {checked.regained} of these were found anew by the plain model"
        notes += [f"{name}: {note}" for note in found.notes]
        counts.append(text)
        cost += found.cost
        all_lost += lost + (found.lost if isinstance(found, EnsembleResult) else 0)
        if every:
            robust_under[name][rows[found.fooled]] = False
        new = found.fooled & ~fooled[rows]
        gone = rows[new]
        x_adv[gone], fooled[gone], fooled_by[gone] = found.x_adv[new], True, number
    said = (*notes, *counts)
    return EnsembleResult(
        x_adv, cost, fooled, said, fooled_by=fooled_by, lost=all_lost, robust_under=robust_under
    )


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of several costs."""
    return sum(costs, Cost(0, 0))

"""Accuracy on clean and on attacked images, sample by sample."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from roli_fast.attacks import Attack
from roli_fast.data import Batch
from roli_fast.engine import Engine, Hold
from roli_fast.errors import ArgumentError, describe
from roli_fast.evaluate.dataset import AttackRow, attack_batches
from roli_fast.evaluate.shares import accuracy
from roli_fast.threat import ThreatModel

UNION = "union"
"""The column of images that stay right in all the others."""


@dataclass(frozen=True)
class Evaluation:
    """Per-sample flags, bool (N,) on the CPU, in the order of the data.

    `robust[label]` is true where the clean image and the attacked one are both classified right,
    so a sample that is wrong to begin with never counts as robust.
    """

    clean: Tensor
    robust: dict[str, Tensor]

    @property
    def clean_accuracy(self) -> float:
        """Share of clean images classified right, in [0, 1]."""
        return accuracy(self.clean)

    @property
    def robust_accuracy(self) -> dict[str, float]:
        """Share of samples that stay right under each attack, in [0, 1]."""
        return {label: accuracy(flags) for label, flags in self.robust.items()}

    @property
    def union(self) -> Tensor:
        """Flags of the samples that are right when clean and under every attack."""
        return torch.stack([self.clean, *self.robust.values()]).all(0)

    @property
    def union_accuracy(self) -> float:
        """Share of such samples, in [0, 1]."""
        return accuracy(self.union)


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch | Sequence[Tensor]],
    attacks: Sequence[Attack] | Mapping[str, Attack],
    *,
    seed: int = 0,
    engine: Engine | None = None,
    after_batch: Callable[[int], None] | None = None,
) -> Evaluation:
    """Clean accuracy and robust accuracy under each attack.

    Only images that are still classified right are attacked: a cost of one forward on every image
    and of the attack on the right ones. The model is put into eval mode and given back as it was.

    Args:
        model: images (B, ...) in the attacks' bounds -> logits (B, C).
        batches: (x, y, ids) on the model's device; or (x, y), as a DataLoader of torch gives them
            from anywhere: then a sample's id is its place, so the loader must not shuffle.
        attacks: each is reported under its `label`; as a mapping, under the name given: one attack
            in several norms has one label.
        seed: seeds the random starts; a sample's start depends on it, on the attack's label and on
            the sample's id alone, not on the batch it comes in.
        engine: how the attacks' passes are made; what they find counts if it fools the model in its
            own precision, which searches what was lost by that once more (`recheck.search`). None
            is `Engine()`.
        after_batch: called with the number of images done; a progress bar, or a stop.

    Raises:
        ArgumentError: no images, labels that the model cannot give, or two attacks of one label.
    """
    if not isinstance(attacks, Mapping):
        labels = [attack.label for attack in attacks]
        if len(set(labels)) < len(labels):
            expected = "attacks that differ in their label, the name of a column of results"
            fix = "Evaluate them in separate calls, or give names: {'linf': ..., 'l2': ...}."
            raise ArgumentError(describe("attacks", expected, ", ".join(labels), fix))
        attacks = dict(zip(labels, attacks, strict=True))
    rows = [
        AttackRow(attack, attack.label, name, (), ("evaluate", seed, attack.label))
        for name, attack in attacks.items()
    ]
    searched = (engine or Engine()).bind(model)
    with Hold(model):
        given = _as_batches(batches, searched.module)
        done = attack_batches(searched, given, rows, after_batch)
    robust = {name: torch.cat([chunk.right(name) for chunk in done]) for name in attacks}
    return Evaluation(torch.cat([chunk.clean for chunk in done]), robust)


def _as_batches(
    batches: Iterable[Batch | Sequence[Tensor]], module: nn.Module | None
) -> Iterator[Batch]:
    """(x, y) with ids by their places, where the model's weights are; a Batch as it is."""
    before = 0
    for given in batches:
        if isinstance(given, Batch):
            yield given
            continue
        if not isinstance(given, Sequence) or len(given) != 2:
            got = f"{len(given)} parts" if isinstance(given, Sequence) else type(given).__name__
            fix = "Let the loader's collate_fn give images and labels."
            raise ArgumentError(describe("batches", "(x, y), or (x, y, ids)", got, fix))
        x, y = given
        device = (next(module.parameters(), x) if module is not None else x).device
        yield Batch(x.to(device), y.to(device), torch.arange(before, before + len(y)))
        before += len(y)


def columns(attack: Attack, threat: ThreatModel) -> dict[str, Attack]:
    """Column -> attack, as a training run validates and tests.

    With one norm that is the attack under its label. With several it is the attack in each of them
    under the norm's name; an image counts for the union where it is right in every column. That is
    so for attacks in several norms as well (multi_apgd, msd): each norm is searched by itself, with
    the steps that the attack makes there.

    An attack that has norms of its own is one attack, under its label, and the measure by itself:
    a cheap validation in the weakest norm (eps left out is the threat's for that norm), a
    multi_apgd of the two norms that are trained on, or a `Union`.

    Args:
        attack: as it is configured.
        threat: what it follows.

    Raises:
        ArgumentError: a radius or step size is given and no norm, where there are several norms: it
            would be the same in all of them.
    """
    fields: dict[str, Any] = vars(attack)
    if not threat.other_norms or getattr(attack, "norm", None) or fields.get("norms"):
        one = attack.under(threat)
        return {one.label: one}
    for name in ("eps", "step_size"):
        if fields.get(name) is not None:
            what = f"null for an attack in several norms ({', '.join(t.norm for t in threat.each)})"
            fix = "Leave it out: the radii are the threat's. Or give the attack a norm as well."
            raise ArgumentError(describe(name, what, fields[name], fix))
    each = {alone.norm: attack.under(alone) for alone in threat.each}
    first = each[threat.norm]
    return {first.label: first} if all(other == first for other in each.values()) else each

"""Accuracy on clean and on attacked images, sample by sample."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from roli_fast.attacks import Attack
from roli_fast.attacks.base import AttackInputs, Radius
from roli_fast.attacks.objective import is_right
from roli_fast.attacks.recheck import Checked, search
from roli_fast.data import Batch
from roli_fast.engine import Cost, Engine, Hold, InputGradient, SearchModel, plain
from roli_fast.errors import ArgumentError, describe
from roli_fast.evaluate.shares import accuracy
from roli_fast.losses import cross_entropy
from roli_fast.seeds import derived_generator


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
    searched = (engine or Engine()).bind(model)
    clean: list[Tensor] = []
    robust: dict[str, list[Tensor]] = {name: [] for name in attacks}
    with Hold(model):
        for given in batches:
            batch = _as_batch(given, sum(map(len, clean)), searched.module)
            right, _cost = right_flags(searched, batch)
            clean.append(right.cpu())
            for name, attack in attacks.items():
                generator = derived_generator("evaluate", seed, attack.label, device=batch.x.device)
                fooled, _found = attacked(searched, batch, right, attack, generator)
                robust[name].append((right & ~fooled).cpu())
            if after_batch:
                after_batch(len(batch.y))
    if not sum(map(len, clean)):
        raise ArgumentError(describe("batches", "at least one image", "none"))
    return Evaluation(torch.cat(clean), {label: torch.cat(f) for label, f in robust.items()})


def _as_batch(given: Batch | Sequence[Tensor], before: int, module: nn.Module | None) -> Batch:
    """(x, y) with ids from `before` on, where the model's weights are; a Batch as it is."""
    if isinstance(given, Batch):
        return given
    if not isinstance(given, Sequence) or len(given) != 2:
        got = f"{len(given)} parts" if isinstance(given, Sequence) else type(given).__name__
        fix = "Let the loader's collate_fn give images and labels."
        raise ArgumentError(describe("batches", "(x, y), or (x, y, ids)", got, fix))
    x, y = given
    weight = next(module.parameters(), x) if module is not None else x
    return Batch(x.to(weight.device), y.to(weight.device), torch.arange(before, before + len(y)))


def right_flags(model: SearchModel, batch: Batch) -> tuple[Tensor, Cost]:
    """Which images the model in its own precision classifies right, (B,), and the passes made."""
    logits, cost = _logits(model, batch)
    return is_right(logits, batch.y), cost


def wrong_answers(model: SearchModel, batch: Batch) -> tuple[Tensor, Cost]:
    """The most likely class (B,) that is not the label, by the model in its own precision: what it
    takes an image for that fools it, also where it draws, or a logit is NaN."""
    logits, cost = _logits(model, batch)
    return logits.scatter(1, batch.y[:, None], -torch.inf).argmax(1), cost


def _logits(model: SearchModel, batch: Batch) -> tuple[Tensor, Cost]:
    with InputGradient(plain(model)) as gradient, torch.no_grad():
        return gradient.evaluate(batch.x, batch.y, cross_entropy)[1], gradient.cost


def attacked(
    model: SearchModel,
    batch: Batch,
    alive: Tensor,
    attack: Attack,
    generator: Generator,
    eps: Radius | None = None,
) -> tuple[Tensor, Checked | None]:
    """Attack the samples in `alive` (B,), at `eps`, a number or one for each of them.

    Returns:
        Which samples (B,) the plain model takes for something else now, none outside `alive`, and
        what the search found for those in it; None where there are none.
    """
    fooled, rows = torch.zeros_like(alive), alive.nonzero()[:, 0]
    if len(rows) == 0:
        return fooled, None
    ids = batch.ids.to(rows.device)[rows]
    x, y = batch.x[rows], batch.y[rows]
    found = search(attack, AttackInputs(model, x, y, generator, sample_ids=ids, eps=eps))
    assert found.result.fooled is not None
    fooled[rows] = found.result.fooled
    return fooled, found

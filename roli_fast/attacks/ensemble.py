"""Several searches, one after another, each on what those before left right."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from roli_fast.attacks.base import Attack, AttackResult, Radius, ids_of, restart_generators
from roli_fast.attacks.objective import is_right
from roli_fast.engine import Cost, InputGradient, SearchModel
from roli_fast.engine.input_gradient import Model
from roli_fast.losses import cross_entropy


@dataclass(frozen=True)
class EnsembleResult(AttackResult):
    """What several searches found.

    `fooled_by` (B,), int64: which of the attack's parts fooled a sample, -1 where none did, also
    where it was wrong to begin with. `lost` counts images that a search took for adversarial (in
    a reduced precision, or by a draw of the model) and that the model classified right when asked
    again.
    """

    fooled_by: Tensor | None = None
    lost: int = 0


@dataclass
class Standing:
    """How each sample of a batch stands; written by `search_in_turn`.

    Args:
        x_adv: images like x, each as it is or as what fooled the model.
        fooled: bool (B,).
        fooled_by: number of the search that fooled it, (B,), or -1.
        costs: of each search.
        notes: what the searches had to say.
        lost: see `EnsembleResult`.
    """

    x_adv: Tensor
    fooled: Tensor
    fooled_by: Tensor
    costs: list[Cost]
    notes: list[str]
    lost: int = 0

    @staticmethod
    def begin(x: Tensor, right: Tensor) -> "Standing":
        """Nothing found yet; what is not `right` (B,) is fooled as it is."""
        nobody = torch.full(right.shape, -1, device=x.device)
        return Standing(x.clone(), ~right, nobody, [], [])

    def result(self, cost: Cost, notes: Iterable[str] = ()) -> EnsembleResult:
        """The result, with `cost` added to that of the searches and `notes` before theirs."""
        return EnsembleResult(
            self.x_adv,
            total([cost, *self.costs]),
            self.fooled,
            (*notes, *self.notes),
            fooled_by=self.fooled_by,
            lost=self.lost,
        )


@dataclass(frozen=True)
class Question:
    """What an attack was asked: the arguments of its `run`."""

    model: Model
    x: Tensor
    y: Tensor
    generator: Generator | None
    sample_ids: Tensor | None = None
    eps: Radius | None = None


def plain(model: Model) -> SearchModel:
    """The model in its own precision, in the batches that a search makes of its images."""
    return replace(SearchModel.of(model), dtype=None)


def search_in_turn(parts: Sequence[Attack], asked: Question, standing: Standing) -> None:
    """Run each part on the samples that are not yet fooled.

    What a part takes for adversarial is shown once more to the plain model, and counts only if it
    still fools: 1 forward a part on what it found.

    Args:
        parts: the searches; each gets its own generator, all derived from one draw.
        asked: model, images and labels.
        standing: where the samples stand; updated.
    """
    x, y = asked.x, asked.y
    ids = ids_of(x, asked.sample_ids)
    generators = restart_generators(asked.generator, len(parts), x.device)
    for number, (part, generator) in enumerate(zip(parts, generators, strict=True)):
        rows = (~standing.fooled).nonzero()[:, 0]
        if len(rows) == 0:
            break
        options = {} if asked.eps is None else {"eps": _of(asked.eps, rows)}
        found = part.run(asked.model, x[rows], y[rows], generator, sample_ids=ids[rows], **options)
        standing.costs.append(found.cost)
        standing.notes += [f"{part.label}: {note}" for note in found.notes]
        took = torch.ones_like(rows, dtype=torch.bool) if found.fooled is None else found.fooled
        tried, images, rows = len(rows), found.x_adv[took], rows[took]
        fools = _still_fooled(asked.model, images, y[rows], standing.costs)
        count = int(fools.sum())
        lost = len(rows) - count if found.fooled is not None else 0
        text = f"{part.label}: fooled {count} of {tried}"
        standing.notes.append(text + (f"; {lost} more were right when asked again" if lost else ""))
        standing.lost += lost
        rows = rows[fools]
        standing.x_adv[rows] = images[fools]
        standing.fooled[rows] = True
        standing.fooled_by[rows] = number


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of several costs."""
    forwards = backwards = forward_images = backward_images = 0
    for cost in costs:
        forwards, backwards = forwards + cost.forwards, backwards + cost.backwards
        forward_images += cost.forward_images
        backward_images += cost.backward_images
    return Cost(forwards, backwards, forward_images, backward_images)


def _of(eps: Radius, rows: Tensor) -> Radius:
    return eps[rows] if isinstance(eps, Tensor) else eps


def _still_fooled(model: Model, x: Tensor, y: Tensor, costs: list[Cost]) -> Tensor:
    """Whether images (B, ...) fool the plain model, (B,); the cost of asking goes to `costs`."""
    if len(x) == 0:
        return torch.zeros(0, dtype=torch.bool, device=x.device)
    with InputGradient(plain(model)) as engine, torch.no_grad():
        logits = engine.evaluate(x, y, cross_entropy)[1]
        costs.append(engine.cost)
    return ~is_right(logits, y)

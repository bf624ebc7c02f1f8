"""The analysis of a stage's start that takes minutes: the first update and the tangent kernel.
Model, images and attack in, trees for a JSON file out.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from roli_fast.analysis.costs import Cost, attack_cost
from roli_fast.analysis.descent import attacked
from roli_fast.analysis.head_scale import SCALES, head_scale, head_scale_cost
from roli_fast.analysis.kernel_regression import FOLDS, kernel_regression, kernel_regression_cost
from roli_fast.analysis.light import Images, number, numbers
from roli_fast.analysis.ntk import COPIES, Kernel, Part, empirical_ntk, empirical_ntk_cost
from roli_fast.analysis.one_step import (
    OneStep,
    Optimize,
    actual_change,
    actual_change_cost,
    first_update,
    first_update_cost,
    one_step,
    one_step_cost,
)
from roli_fast.analysis.view import LinearHead
from roli_fast.attacks import Attack
from roli_fast.data import Batch

TOP = 50
"""Eigenvalues of a spectrum that are kept."""


@dataclass(frozen=True, eq=False)
class Start:
    """A stage at its start, and what it is looked at with.

    Args:
        model: as the stage began, its tuning applied.
        names: the tensors that the stage trains.
        train: training images.
        validation: held-out images, on which changes are measured.
        attack: under the threat; None for clean training alone.
        lr: the stage's rate.
        optimizer: its name, "adamw" say.
        optimize: (model, names) -> the stage's optimiser.
        counts: of training and validation images.
        attacks: whether the stage trains on attacked images.
        seed: of the attack's draws.
        after_batch: called with the number of images done, `one_step_looks` and its like in all; a
            progress bar, or a stop.
    """

    model: nn.Module
    names: Sequence[str]
    train: Images
    validation: Images
    attack: Attack | None
    lr: float
    optimizer: str
    optimize: Optimize
    counts: tuple[int, int]
    attacks: bool = True
    seed: int = 0
    after_batch: Callable[[int], None] | None = None

    def kinds(self) -> dict[str, Attack | None]:
        """Clean training looked at on clean images, adversarial training on attacked ones."""
        return {"clean": None} | ({"adversarial": self.attack} if self.attack else {})

    def seen(self, attack: Attack | None) -> list[Batch]:
        """The validation images, attacked at this model where there is an attack."""
        images = self.counted(self.validation())
        return list(attacked(self.model, images, attack, seed=self.seed))

    def seen_cost(self, attack: Attack | None) -> Cost:
        """Of `seen`."""
        classes = LinearHead.of(self.model).classes
        return attack_cost(attack, self.counts[1], classes=classes) if attack else Cost("")

    def counted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; `after_batch` is called after each is used."""
        for batch in batches:
            yield batch
            if self.after_batch:
                self.after_batch(len(batch.y))


def one_step_tree(start: Start) -> dict[str, Any]:
    """The first update to first order, clean and adversarial.

    Of each kind: "ft_ratio", a mean over the validation images (the paper's is over the training
    images); "lr", the stage's rate on the mean loss over the training images; "predicted" and
    "actual", mean |change of the features| of the validation images under that step of SGD, to
    first order and really; "predicted_logits" likewise; "relative_error", mean |predicted - actual|
    over mean |actual|; "residual"; how many images; and under "first_update" the same of the step
    that the stage's own optimiser makes from its first state, at the same rate: a warm-up, which
    would make that of training smaller, is left out.
    """
    return {kind: _one_step(start, attack) for kind, attack in start.kinds().items()}


def one_step_looks(start: Start) -> int:
    """How many images `one_step_tree` goes through, all passes counted."""
    train, validation = start.counts
    return len(start.kinds()) * (2 * train + 5 * validation)


def one_step_tree_cost(start: Start) -> Cost:
    """Of both kinds two predictions, one first step of the optimiser, and what really happens."""
    train, images = start.counts
    total = Cost("")
    for attack in start.kinds().values():
        parts = [
            one_step_cost(start.model, train, images, attack),
            first_update_cost(start.model, train, attack),
            one_step_cost(start.model, 0, images),
            actual_change_cost(2 * images),
        ]
        for part in (*parts, start.seen_cost(attack)):
            total += part.named("")
    return total.named("first update, predicted and actual")


def head_scale_tree(start: Start) -> list[dict[str, Any]]:
    """The predicted change under the stage's rate with the head times 0.1, 1 and 10; attacked
    training images looked at on attacked ones where the stage has an attack, clean ones else.

    Each: "scale", "features", "logits_F", "ft_ratio", "residual", and with the residuals of scale 1
    "fixed_features" and "fixed_logits_F".
    """
    attack = start.attack if start.attacks else None
    rows = head_scale(
        start.model,
        start.train(),
        start.seen(attack),
        names=start.names,
        lr=start.lr / start.counts[0],
        attack=attack,
        seed=start.seed,
        after_batch=start.after_batch,
    )
    return [
        numbers(
            {
                "scale": row.scale,
                "features": row.features,
                "logits_F": row.logits_F,
                "ft_ratio": row.ft_ratio,
                "residual": row.residual,
                "fixed_features": row.fixed.features,
                "fixed_logits_F": row.fixed.logits_F,
            }
        )
        for row in rows
    ]


def head_scale_looks(start: Start) -> int:
    """As `one_step_looks`."""
    return 2 * len(SCALES) * sum(start.counts) + start.counts[1]


def head_scale_tree_cost(start: Start) -> Cost:
    """See `head_scale_cost`; and the attack on the images that are looked at."""
    attack = start.attack if start.attacks else None
    cost = head_scale_cost(start.model, *start.counts, len(SCALES), attack)
    return (cost + start.seen_cost(attack)).named("head scale")


def kernel_tree(start: Start, memory: int) -> dict[str, Any]:
    """P, F and their sum at the stage's start, in fp64, on clean images whatever the stage trains
    on: training images for rank, norm and spectrum; validation images for the test of kernel
    regression, null with fewer training images than it has folds.

    Raises:
        ArgumentError: N x C is above what fits into `memory`.
    """
    train, test = _stacked(start.train()), _stacked(start.validation())
    x, y = torch.cat([train.x, test.x]), torch.cat([train.y, test.y]).cpu()
    options: dict[str, Any] = {"names": start.names, "memory": memory, "dtype": torch.float64}
    whole = empirical_ntk(start.model, x, y, after_batch=start.after_batch, **options)
    ours, theirs = torch.arange(len(train.y)), torch.arange(len(train.y), len(y))
    own = Kernel(whole.P_gram[ours][:, ours], whole.matrix("F", ours, ours), whole.classes)
    spectrum = own.spectrum("NTK")
    fit = None
    if len(ours) >= FOLDS:
        square, across = (whole.matrix("NTK", rows, ours) for rows in (ours, theirs))
        fit = kernel_regression(square, y[ours], across, y[theirs])
    parts: tuple[Part, ...] = ("P", "F", "NTK")
    return {
        "images": len(ours),
        "test_images": len(theirs),
        "classes": own.classes,
        **{part: {"rank": own.rank(part), "frobenius": own.frobenius(part)} for part in parts},
        "spectrum": [number(v) for v in (spectrum / spectrum[0])[:TOP].tolist()],
        "regression": fit and {"train": fit.train, "test": fit.test, "trivial": fit.trivial},
    }


def kernel_tree_cost(start: Start, memory: int) -> Cost:
    """See `empirical_ntk_cost` and `kernel_regression_cost`.

    Raises:
        ArgumentError: N x C is above what fits into `memory`.
    """
    train, test = start.counts
    options: dict[str, Any] = {"names": start.names, "memory": memory, "dtype": torch.float64}
    kernel = empirical_ntk_cost(start.model, train + test, **options)
    classes = LinearHead.of(start.model).classes
    return (kernel + kernel_regression_cost(train, classes)).named("tangent kernel")


def most_kernel_images(classes: int, memory: int) -> int:
    """How many training images, and as many others, have a kernel in fp64 that fits."""
    return int((memory / (COPIES * 8)) ** 0.5) // classes // 2


def _stacked(batches: Iterable[Batch]) -> Batch:
    return Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def _one_step(start: Start, attack: Attack | None) -> dict[str, Any]:
    model, seen, count = start.model, start.seen(attack), start.counts[0]
    options: dict[str, Any] = {"names": start.names, "attack": attack, "seed": start.seed}

    def train() -> Iterator[Batch]:
        return start.counted(start.train())

    step = one_step(model, train(), start.counted(seen), lr=start.lr / count, **options)
    tangent = first_update(model, train(), start.optimize, **options)
    own = one_step(model, (), start.counted(seen), tangent=tangent, names=start.names)
    return {
        "ft_ratio": number(step.ft_ratio),
        "lr": start.lr,
        **_compared(start, step, seen),
        "residual": number(step.residual),
        "train_images": count,
        "images": len(step.features),
        "first_update": {
            "optimizer": start.optimizer,
            "ft_ratio": number(own.ft_ratio),
            **_compared(start, own, seen),
        },
        "notes": list(dict.fromkeys((*step.notes, *own.notes))),
    }


def _compared(start: Start, step: OneStep, seen: list[Batch]) -> dict[str, float | None]:
    """What was predicted beside what happens, which is measured in fp64: at small rates it would
    drown in fp32's rounding."""
    images = start.counted(seen)
    change = actual_change(start.model, step.tangent, images, dtype=torch.float64)
    size = change.features.norm(dim=1).mean()
    off = (step.features.double() - change.features).norm(dim=1).mean()
    return {
        "predicted": _mean_size(step.features),
        "actual": number(size.item()),
        "predicted_logits": _mean_size(step.logits),
        "actual_logits": _mean_size(change.logits),
        "relative_error": number((off / size).item()),
    }


def _mean_size(rows: Tensor) -> float | None:
    return number(rows.double().norm(dim=1).mean().item())

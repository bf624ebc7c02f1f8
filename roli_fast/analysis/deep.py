"""The analysis of a stage's start that takes minutes: the first update and the tangent kernel.
Model, images and attack in, trees for a JSON file out.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from roli_fast.analysis.kernel_regression import FOLDS, kernel_regression
from roli_fast.analysis.light import Images, number, numbers
from roli_fast.analysis.ntk import MEMORY, Kernel, empirical_ntk, gradient_passes
from roli_fast.analysis.ntk import Part as KernelPart
from roli_fast.analysis.one_step import (
    SCALES,
    OneStep,
    Optimize,
    actual_change,
    first_update,
    head_scale,
    one_step,
)
from roli_fast.analysis.view import LinearHead, attacked, counted
from roli_fast.attacks import Attack
from roli_fast.data import Batch
from roli_fast.evaluate import attack_passes

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
        memory: bytes that a kernel may take.
        after_batch: called with the number of images done, as many as `Part.work` says in all; a
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
    memory: int = MEMORY
    after_batch: Callable[[int], None] | None = None

    def kinds(self) -> dict[str, Attack | None]:
        """Clean training looked at on clean images, adversarial training on attacked ones."""
        return {"clean": None} | ({"adversarial": self.attack} if self.attack else {})

    def seen(self, attack: Attack | None) -> list[Batch]:
        """The validation images, attacked at this model where there is an attack."""
        images = counted(self.validation(), self.after_batch)
        return list(attacked(self.model, images, attack, seed=self.seed))

    def passes(self, attack: Attack | None) -> int:
        """Of an attack on one image."""
        return attack_passes(attack, LinearHead.of(self.model).classes)


class Work(NamedTuple):
    """What a part takes, about: the images that its progress counts, and forwards of one image (a
    gradient of the weights counts two and so does a Jacobian product, besides the forward of each:
    one matrix product a layer is W x, two are W^T g and g x^T, or W dx and dW x), and FLOP besides.
    """

    images: int
    forwards: float
    flop: float = 0.0


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


def one_step_work(start: Start) -> Work:
    """Of each kind two gradients, two products, and four forwards for what really happens."""
    (train, images), attacks = start.counts, list(start.kinds().values())
    forwards = len(attacks) * (2 * 3 * train + 2 * 3 * images + 4 * images)
    forwards += sum((2 * train + images) * start.passes(attack) for attack in attacks)
    return Work(len(attacks) * (2 * train + 5 * images), forwards)


def head_scale_tree(start: Start) -> list[dict[str, Any]]:
    """The predicted change under the stage's rate with the head times 0.1, 1 and 10; attacked
    training images looked at on attacked ones where the stage has an attack, clean ones else.

    Each as `ScaleRow`.
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
    return [numbers(asdict(row)) for row in rows]


def head_scale_work(start: Start) -> Work:
    """At each scale an attack, a gradient and a product."""
    (train, images), scales = start.counts, len(SCALES)
    attack = start.passes(start.attack if start.attacks else None)
    forwards, searches = 3 * scales * (train + images), scales * train + images
    return Work(scales * (train + images) + images, forwards + searches * attack)


def kernel_tree(start: Start) -> dict[str, Any]:
    """P, F and their sum at the stage's start, in fp64, on clean images whatever the stage trains
    on: training images for rank, norm and spectrum; validation images for the test of kernel
    regression, null with fewer training images than it has folds.

    Raises:
        ArgumentError: N x C is above what fits into `start.memory`.
    """
    train, test = _stacked(start.train()), _stacked(start.validation())
    x, y = torch.cat([train.x, test.x]), torch.cat([train.y, test.y]).cpu()
    options: dict[str, Any] = {"names": start.names, "memory": start.memory, "dtype": torch.float64}
    whole = empirical_ntk(start.model, x, after_batch=start.after_batch, **options)
    ours, theirs = torch.arange(len(train.y)), torch.arange(len(train.y), len(y))
    own = Kernel(whole.P_gram[ours][:, ours], whole.matrix("F", ours, ours), whole.classes)
    spectrum = own.spectrum("NTK")
    fit = None
    if len(ours) >= FOLDS:
        square, across = (whole.matrix("NTK", rows, ours) for rows in (ours, theirs))
        fit = kernel_regression(square, y[ours], across, y[theirs])
    parts: tuple[KernelPart, ...] = ("P", "F", "NTK")
    return {
        "images": len(ours),
        "test_images": len(theirs),
        "classes": own.classes,
        **{part: {"rank": own.rank(part), "frobenius": own.frobenius(part)} for part in parts},
        "spectrum": [number(v) for v in (spectrum / spectrum[0])[:TOP].tolist()],
        "regression": fit and {"train": fit.train, "test": fit.test, "trivial": fit.trivial},
    }


def kernel_work(start: Start) -> Work:
    """Of each block of parameters a forward and C gradients of every image, and their products."""
    view, images = LinearHead.of(start.model), sum(start.counts)
    rows = images * view.classes
    parameters = sum(p.numel() for p in view.backbone(start.names).values())
    blocks = gradient_passes(rows, 8, parameters, start.memory)
    forwards = images * (1 + blocks)
    return Work(forwards, forwards + 2 * rows * blocks, 2.0 * rows**2 * parameters)


@dataclass(frozen=True)
class Part:
    """A part that is made when asked for.

    Args:
        field: its name in a stage of analysis.json.
        make: the part.
        work: what it takes.
        one_by_one: whether images pass the model one by one.
    """

    field: str
    make: Callable[[Start], Any]
    work: Callable[[Start], Work]
    one_by_one: bool = False


PARTS = {
    "ft_ratio": Part("one_step", one_step_tree, one_step_work),
    "head_scale": Part("head_scale", head_scale_tree, head_scale_work),
    "kernel": Part("kernel", kernel_tree, kernel_work, one_by_one=True),
}
"""By the flags of `python -m roli_fast.analyze`."""


def _stacked(batches: Iterable[Batch]) -> Batch:
    return Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def _one_step(start: Start, attack: Attack | None) -> dict[str, Any]:
    model, seen, count = start.model, start.seen(attack), start.counts[0]
    options: dict[str, Any] = {"names": start.names, "attack": attack, "seed": start.seed}

    def told(images: Iterable[Batch]) -> Iterable[Batch]:
        return counted(images, start.after_batch)

    step = one_step(model, told(start.train()), told(seen), lr=start.lr / count, **options)
    tangent = first_update(model, told(start.train()), start.optimize, **options)
    own = one_step(model, (), told(seen), tangent=tangent, names=start.names)
    return {
        "ft_ratio": number(step.ft_ratio),
        "lr": start.lr,
        **_compared(start, step, seen),
        "residual": number(step.residual),
        "train_images": count,
        "images": len(step.features),
        "first_update": {
            "optimizer": start.optimizer,
            "lr": start.lr,
            "ft_ratio": number(own.ft_ratio),
            **_compared(start, own, seen),
        },
    }


def _compared(start: Start, step: OneStep, seen: list[Batch]) -> dict[str, float | None]:
    """What was predicted beside what happens, which is measured in fp64: at small rates it would
    drown in fp32's rounding."""
    images = counted(seen, start.after_batch)
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

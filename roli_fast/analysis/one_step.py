"""What one update will do to features and logits, by one gradient and one Jacobian product.

With f(x) = V phi(x) + b and delta_i = e_y - softmax(f(x_i)) at the start, one SGD step of rate eta
on the SUM of the cross-entropies moves, to first order (Tomihari & Sato, "Understanding Linear
Probing then Fine-tuning Language Models from NTK Perspective", NeurIPS 2024, arXiv:2405.16747):

    d phi(x) = eta sum_i Theta(x, x_i) V^T delta_i,    d f(x) = eta sum_i (P + F)(x, x_i) delta_i,

F(x, x') = V J(x) J(x')^T V^T by the backbone, P(x, x') = (<phi(x), phi(x')> + 1) I by the head. No
kernel is built: g = sum_i J(x_i)^T V^T delta_i is minus a gradient, d phi = eta J(x) g one product
along it, and the F part of d f is V d phi. Memory is a few copies of what trains.

What the size of the head does to it, V -> s V and b -> s b before it: at fixed residuals and rate
d phi grows as s and the backbone's part of d f as s^2, so that features move less for each unit
that logits move (section 4). At the same rate they move more: what reverses it in practice are
smaller residuals and smaller rates.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from roli_fast.analysis.derivatives import Network, Tangent, moving_names, network
from roli_fast.analysis.features import residual
from roli_fast.analysis.view import LinearHead, attacked, counted
from roli_fast.attacks import Attack
from roli_fast.data import Batch
from roli_fast.errors import ArgumentError, describe
from roli_fast.threat import check_positive

SCALES = (0.1, 1.0, 10.0)

Optimize = Callable[[nn.Module, list[str]], torch.optim.Optimizer]
"""(model, names) -> an optimiser over these parameters; `train`'s `Optimizer.build` is one."""

Weigh = Callable[[Batch, Tensor], Tensor]
"""(batch, logits (B, C)) -> delta (B, C), what each logit is weighted with."""


def of_labels(batch: Batch, logits: Tensor) -> Tensor:
    """The cross-entropy's: delta = e_y - softmax(logits)."""
    return residual(logits, batch.y)


@dataclass(frozen=True)
class Descent:
    """Where the summed loss falls fastest.

    Args:
        tangent: minus the gradient, by parameter name: sum_i J(x_i)^T V^T delta_i of the backbone,
            sum_i delta_i phi(x_i)^T and sum_i delta_i of the head.
        residual: mean |delta_i|.
        images: how many were summed.
    """

    tangent: dict[str, Tensor] = field(repr=False)
    residual: float
    images: int


def descend(net: Network, batches: Iterable[Batch], weigh: Weigh) -> Descent:
    """One forward and one backward for each image; memory for one sum of gradients.

    Args:
        net: the network.
        batches: the images, on any device.
        weigh: gives delta.

    Raises:
        ArgumentError: no images.
    """
    total = {name: torch.zeros_like(value) for name, value in net.parameters.items()}
    head = [torch.zeros_like(p, requires_grad=False) for p in net.head.layer.parameters()]
    size, images = 0.0, 0
    for batch in batches:
        own = batch._replace(y=batch.y.to(net.head.layer.weight.device))
        phi, delta, gradient = net.pull(batch.x, lambda logits, own=own: weigh(own, logits))
        for name, value in gradient.items():
            total[name] += value
        for part, value in zip(head, (delta.t() @ phi, delta.sum(0)), strict=False):
            part += value
        size += float(delta.double().norm(dim=1).sum())
        images += len(own.y)
    if not images:
        raise ArgumentError(describe("train", "at least one image", "none"))
    total |= dict(zip(net.head_names, head, strict=True))
    return Descent(total, size / images, images)


@dataclass(frozen=True)
class OneStep:
    """A predicted update; rows in the order of the batches, on the CPU.

    Args:
        features: d phi, (N, D).
        logits: d f = backbone_part + head_part, (N, C).
        backbone_part: sum_i F delta_i times the rate, V d phi, (N, C).
        head_part: sum_i P delta_i times the rate, (N, C).
        ft_ratio: mean over the images of |backbone_part| / |logits|; it may exceed 1 where the
            parts cancel, and is 0 for a zero head.
        lr: the rate; None with a tangent of the caller's.
        tangent: the update itself, parameter name -> change, the head's among them.
        residual: mean |delta_i| over the training images; NaN where they were not needed.
        train_images: how many images the gradient was summed over.
    """

    features: Tensor
    logits: Tensor
    backbone_part: Tensor
    head_part: Tensor
    ft_ratio: float
    lr: float | None
    tangent: dict[str, Tensor] = field(repr=False)
    residual: float
    train_images: int

    @property
    def size(self) -> float:
        """Mean |d phi| over the images."""
        return float(self.features.norm(dim=1).mean())

    @property
    def backbone_size(self) -> float:
        """Mean |V d phi| over the images."""
        return float(self.backbone_part.norm(dim=1).mean())


@dataclass(frozen=True)
class Change:
    """How features (N, D) and logits (N, C) really change under an update, on the CPU."""

    features: Tensor
    logits: Tensor

    @property
    def size(self) -> float:
        """Mean |change of phi| over the images."""
        return float(self.features.norm(dim=1).mean())


def one_step(  # noqa: PLR0913 - one call, and each option is independent of the others
    model: nn.Module | LinearHead,
    train: Iterable[Batch],
    batches: Iterable[Batch],
    *,
    names: Sequence[str] | None = None,
    lr: float = 1.0,
    attack: Attack | None = None,
    tangent: Tangent | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> OneStep:
    """The change of features and logits that one update is predicted to make, to first order.

    Under attack the update sees x'_i = attack(x_i) at the present weights, held fixed (envelope
    theorem): valid while these stay the worst ones. `batches` are taken as they are: give clean
    images, or attacked ones.

    Costs one forward and one backward for each image of `train` (and the attack), and one product,
    of about two forwards, for each of `batches`.

    Args:
        model: inputs (B, ...) -> logits (B, C), with a linear head.
        train: the images that the update sees, fixed views, all of them in one sum.
        batches: where the change is wanted.
        names: the tensors that train (`peft.apply` gives them); None is what requires grad, or all
            where nothing does, or what `tangent` names. The head always trains.
        lr: the rate on the SUM of the losses. A mean over N images is lr / N here.
        attack: a complete one (`.under(threat)`), for `train`; None is clean training.
        tangent: an update to take in place of lr times the gradient, of `first_update` say; the
            head stays where it is not named. `train` is then not looked at.
        dtype: compute in this dtype, in a copy of the model; None is the model's own. The attack
            always sees the model as it is.
        seed: of the attack's random start, by sample id.

    Returns:
        The prediction.

    Raises:
        ArgumentError: a model without a linear head, no images, names it does not have.
    """
    check_positive("lr", lr)
    view = LinearHead.of(model)
    moving = list(tangent) if tangent is not None and names is None else names
    with network(view, moving, dtype) as net:
        if tangent is not None:
            net.check(tangent)
            return _predict(net, tangent, batches)
        return _step(net, attacked(view.model, train, attack, seed=seed), batches, lr)


def _step(net: Network, train: Iterable[Batch], batches: Iterable[Batch], lr: float) -> OneStep:
    """The change by `lr` times the gradient of the training images."""
    found = descend(net, train, of_labels)
    update = {name: lr * value for name, value in found.tangent.items()}
    predicted = _predict(net, update, batches)
    return replace(predicted, lr=lr, residual=found.residual, train_images=found.images)


def _predict(net: Network, update: Tangent, batches: Iterable[Batch]) -> OneStep:
    """The change that a given update makes, to first order."""
    rows: list[list[Tensor]] = []
    for batch in batches:
        phi, moved = net.push(batch.x, update)
        parts = (moved, moved @ net.head.layer.weight.detach().t(), net.head_part(phi, update))
        rows.append([part.detach().cpu() for part in parts])
    if not sum(len(row[0]) for row in rows):
        raise ArgumentError(describe("batches", "at least one image", "none"))
    features, backbone_part, head_part = (torch.cat(column) for column in zip(*rows, strict=True))
    logits = backbone_part + head_part
    above, below = backbone_part.double().norm(dim=1), logits.double().norm(dim=1)
    return OneStep(
        features,
        logits,
        backbone_part,
        head_part,
        ft_ratio=float(torch.where(above > 0, above / below, 0.0).mean()),
        lr=None,
        tangent=dict(update),
        residual=float("nan"),
        train_images=0,
    )


def actual_change(
    model: nn.Module | LinearHead,
    tangent: Tangent,
    batches: Iterable[Batch],
    *,
    dtype: torch.dtype | None = None,
) -> Change:
    """What an update really does: phi(theta + tangent) - phi(theta), and the same of the logits.

    Two forwards for each image; the model's weights are left alone.

    Args:
        model: inputs (B, ...) -> logits (B, C), with a linear head.
        tangent: parameter name -> change, `OneStep.tangent` say; the head's too.
        batches: where the change is wanted.
        dtype: compute in this dtype, in a copy of the model; None is the model's own, whose
            rounding hides a small update: take float64 then.
    """
    view, rows = LinearHead.of(model), []
    with network(view, [], dtype) as net:
        net.check(tangent)
        for batch in batches:
            after, before = net.moved(batch.x, tangent), net.moved(batch.x, {})
            rows.append([(new - old).cpu() for new, old in zip(after, before, strict=True)])
    if not rows:
        raise ArgumentError(describe("batches", "at least one image", "none"))
    return Change(*(torch.cat(column) for column in zip(*rows, strict=True)))


def first_update(
    model: nn.Module | LinearHead,
    train: Iterable[Batch],
    optimizer: Optimize,
    *,
    names: Sequence[str] | None = None,
    attack: Attack | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """What an optimiser's first step really does to the weights: a tangent for `one_step`.

    AdamW's first step is about lr * sign(gradient), plus decay: nothing like lr * gradient. The
    step is made in a copy of the model on the mean of the losses over `train`.

    Args:
        model: inputs (B, ...) -> logits (B, C), with a linear head.
        train: the images of the step, its first batch say.
        optimizer: (model, names) -> the optimiser, at the rate that is meant; the `build` of
            `train`'s `Optimizer` is one, at the peak rate: a warm-up begins below it.
        names: the tensors that train; the head's are added.
        attack: as for `one_step`.
        seed: of the attack's random start.

    Returns:
        Parameter name -> change, of the backbone's tensors and of the head's.
    """
    view = LinearHead.of(model)
    own = LinearHead.of(copy.deepcopy(view.model), view.name)
    with network(own, moving_names(view, names)) as net:
        found = descend(net, attacked(view.model, train, attack, seed=seed), of_labels)
    before = {name: net.own[name].detach().clone() for name in found.tangent}
    for name, value in found.tangent.items():
        net.own[name].requires_grad_(True).grad = -value / found.images
    optimizer(own.model, list(found.tangent)).step()
    return {name: net.own[name].detach() - old for name, old in before.items()}


@dataclass(frozen=True)
class ScaleRow:
    """One scale s.

    Args:
        scale: s.
        features: mean predicted |d phi|, everything computed at this scale.
        logits_F: mean predicted |V d phi|, likewise.
        ft_ratio: likewise; see `OneStep`.
        residual: mean |delta_i| over the training images, likewise.
    """

    scale: float
    features: float
    logits_F: float
    ft_ratio: float
    residual: float


def head_scale(  # noqa: PLR0913 - one call, and each option is independent of the others
    model: nn.Module | LinearHead,
    train: Iterable[Batch],
    batches: Iterable[Batch],
    scales: Sequence[float] = SCALES,
    *,
    names: Sequence[str] | None = None,
    lr: float = 1.0,
    attack: Attack | None = None,
    seed: int = 0,
    after_batch: Callable[[int], None] | None = None,
) -> list[ScaleRow]:
    """The predicted change under one SGD step, for the head times each scale.

    At fixed residuals the features' change would grow as the scale and that of the logits through
    the backbone as its square; a larger head has smaller residuals. A large scale saturates the
    softmax: residuals vanish, and so do the gradients of an attack on the cross-entropy, which then
    only seems to fail. Attack by a scale-free loss, DLR say.

    Args:
        model: inputs (B, ...) -> logits (B, C), with a linear head; it is copied.
        train: the images that the update sees; all are kept for the time of the call.
        batches: where the change is wanted.
        scales: numbers > 0.
        names: the tensors that train; see `one_step`.
        lr: the rate on the SUM of the losses, the same for all scales.
        attack: for `train`, made anew at every scale.
        seed: of the attack's random start.
        after_batch: called with the number of images done, len(scales) times all of both; a
            progress bar, or a stop.
    """
    for scale in scales:
        check_positive("scales", scale)
    view = LinearHead.of(model)
    train, batches, moving = list(train), list(batches), moving_names(view, names)
    own = LinearHead.of(copy.deepcopy(view.model), view.name)
    start = [parameter.detach().clone() for parameter in own.layer.parameters()]
    rows: list[ScaleRow] = []
    for scale in scales:
        with torch.no_grad():
            for parameter, value in zip(own.layer.parameters(), start, strict=True):
                parameter.copy_(scale * value)
        with network(own, moving) as net:
            seen = counted(attacked(own.model, train, attack, seed=seed), after_batch)
            found = _step(net, seen, counted(batches, after_batch), lr)
        sizes = (found.size, found.backbone_size, found.ft_ratio, found.residual)
        rows.append(ScaleRow(scale, *sizes))
    return rows

"""What one update will do to features and logits, by one gradient and one Jacobian product.

With f(x) = V phi(x) + b and delta_i = e_y - softmax(f(x_i)) at the start, one SGD step of rate eta
on the SUM of the cross-entropies moves, to first order (Tomihari & Sato, "Understanding Linear
Probing then Fine-tuning Language Models from NTK Perspective", NeurIPS 2024, arXiv:2405.16747):

    d phi(x) = eta sum_i Theta(x, x_i) V^T delta_i,    d f(x) = eta sum_i (P + F)(x, x_i) delta_i,

F(x, x') = V J(x) J(x')^T V^T by the backbone, P(x, x') = (<phi(x), phi(x')> + 1) I by the head. No
kernel is built: g = sum_i J(x_i)^T V^T delta_i is minus a gradient, d phi = eta J(x) g one product
along it, and the F part of d f is V d phi. Memory is a few copies of what trains.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from roli_fast.analysis.costs import Cost
from roli_fast.analysis.derivatives import Network, Tangent, network
from roli_fast.analysis.view import LinearHead
from roli_fast.attacks import Attack
from roli_fast.data import Batch
from roli_fast.errors import ArgumentError, describe
from roli_fast.seeds import derived_generator
from roli_fast.threat import check_positive

Optimize = Callable[[nn.Module, list[str]], torch.optim.Optimizer]
"""(model, names) -> an optimiser over these parameters; `train`'s `Optimizer.build` is one."""


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
        notes: what the user should know.
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
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> float:
        """Mean |d phi| over the images."""
        return float(self.features.norm(dim=1).mean())


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
    model: nn.Module,
    train: Iterable[Batch],
    batches: Iterable[Batch],
    *,
    names: Sequence[str] | None = None,
    lr: float = 1.0,
    attack: Attack | None = None,
    tangent: Tangent | None = None,
    head: str | None = None,
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
        names: the tensors that train; see `derivatives.moving_names`. The head always does.
        lr: the rate on the SUM of the losses. A mean over N images is lr / N here.
        attack: a complete one (`.under(threat)`), for `train`; None is clean training.
        tangent: an update to take in place of lr times the gradient, of `first_update` say; the
            head stays where it is not named. `train` is then not looked at.
        head: name of the head where it cannot be found.
        dtype: compute in this dtype, in a copy of the model; None is the model's own. The attack
            always sees the model as it is.
        seed: of the attack's random start, by sample id.

    Returns:
        The prediction.

    Raises:
        ArgumentError: a model without a linear head, no images, names it does not have.
    """
    check_positive("lr", lr)
    view, source = _views(model, head, dtype)
    with network(view, names) as net:
        if tangent is None:
            seen = attacked(source, train, attack, seed=seed)
            pulled = descend(net, seen, residuals)
            update = {name: lr * value for name, value in pulled.tangent.items()}
            residual, count = pulled.residual, pulled.images
        else:
            update, residual, count = dict(tangent), float("nan"), 0
            net.check(update)
        return _predicted(net, update, batches)(None if tangent else lr, residual, count)


@dataclass
class Descent:
    """Minus the gradient of the summed loss, and what was seen on the way."""

    tangent: dict[str, Tensor]
    residual: float
    images: int


def residuals(logits: Tensor, y: Tensor, _ids: Tensor) -> Tensor:
    """delta = e_y - softmax, (B, C)."""
    return torch.zeros_like(logits).scatter_(1, y[:, None], 1.0) - logits.softmax(1)


def descend(
    net: Network, batches: Iterable[Batch], weigh: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Descent:
    """sum_i J(x_i)^T V^T delta_i over the batches, and the head's sum_i delta_i (phi_i, 1)^T.

    Args:
        net: the network.
        batches: the images.
        weigh: (logits, y, ids) -> delta (B, C).
    """
    layer, name = net.head.layer, net.head.name
    total = {key: torch.zeros_like(value) for key, value in net.parameters.items()}
    weight, bias = torch.zeros_like(layer.weight), layer.weight.new_zeros(layer.out_features)
    size, images = 0.0, 0
    for batch in batches:
        y = batch.y.to(layer.weight.device)
        pulled = net.pull(batch.x, lambda logits: weigh(logits, y, batch.ids))  # noqa: B023
        for key, value in pulled.gradient.items():
            total[key] += value
        weight = weight + pulled.weights.t() @ pulled.features
        bias = bias + pulled.weights.sum(0)
        size += float(pulled.weights.norm(dim=1).sum())
        images += len(y)
    if not images:
        raise ArgumentError(describe("train", "at least one image", "none"))
    total[f"{name}.weight" if name else "weight"] = weight.detach()
    if layer.bias is not None:
        total[f"{name}.bias" if name else "bias"] = bias.detach()
    return Descent(total, size / images, images)


def attacked(
    model: nn.Module,
    batches: Iterable[Batch],
    attack: Attack | None,
    *,
    seed: int = 0,
) -> Iterator[Batch]:
    """The batches with x'_i in place of x_i; a start depends on seed, label and sample id alone."""
    for batch in batches:
        if attack is None:
            yield batch
            continue
        generator = derived_generator("evaluate", seed, attack.label, device=batch.x.device)
        x = attack(model, batch.x, batch.y, generator, sample_ids=batch.ids)
        yield batch._replace(x=x)

"""Two epochs of gradient projection as a plain loop, without the package's own."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from roli_fast import models
from roli_fast.data import Batch, batches
from roli_fast.seeds import derive_seed, derived_generator
from roli_fast.train import Experiment


def start(experiment: Experiment) -> models.Classifier:
    """The model that a run begins with, of seed 0."""
    splits = experiment.data.load()
    model = models.create(
        experiment.model,
        num_classes=splits.num_classes,
        seed=derive_seed(0, "init"),
        image_size=splits.train.image_size,
    )
    models.init_head(model, experiment.fresh_head, seed=0)
    return model


def train(experiment: Experiment, model: models.Classifier, **how: Any) -> dict[str, Tensor]:
    """The backbone after two epochs of method ranli: SGD, full tuning, no warm-up."""
    ((_name, stage),) = experiment.stages("ranli")
    data = experiment.data.load().train
    size = stage.batch_size
    updates = -(-len(data) // size)
    attack = stage.attack.under(experiment.threat) if stage.attack else None

    def decays(parameter: Tensor) -> bool:
        return parameter.ndim in (2, 4)  # the class token and the positions have three

    optimizers = [
        torch.optim.SGD(
            [
                {"params": [p for p in model.parameters() if decays(p)], "weight_decay": 0.01},
                {"params": [p for p in model.parameters() if not decays(p)], "weight_decay": 0.0},
            ],
            lr=stage.optimizer.lr,
            momentum=0.9,
            fused=True,
        )
        for _ in range(2)
    ]

    def epoch(number: int, optimizer: torch.optim.Optimizer, *source: str, attacked: bool) -> None:
        seed = derive_seed(0, "ranli", *source, "data")
        order = batches(data, batch_size=size, seed=seed, epoch=number, shuffle=True)
        for update, (x, y, ids) in enumerate(order, number * updates):
            for group in optimizer.param_groups:
                rate = 0.5 * (1 + math.cos(math.pi * update / (2 * updates)))
                group["lr"] = stage.optimizer.lr * rate
            model.train()
            if attacked and attack:
                generator = derived_generator(0, "ranli", "attack", number)
                x = attack(model, x, y, generator, engine=stage.engine, sample_ids=ids)
            optimizer.zero_grad()
            nn.functional.cross_entropy(
                model(Batch(x, y, ids).x), y, reduction="none"
            ).mean().backward()
            optimizer.step()

    for number in range(2):
        theta = copy.deepcopy(model.state_dict())
        epoch(number, optimizers[0], "natural", attacked=False)
        natural = copy.deepcopy(model.state_dict())
        model.load_state_dict(theta)
        epoch(number, optimizers[1], attacked=True)
        own = copy.deepcopy(model.state_dict())
        model.load_state_dict(
            {name: merged(name, theta[name], natural[name], own[name], **how) for name in own}
        )
    return copy.deepcopy(model.backbone.state_dict())


def merged(  # noqa: PLR0913 - a formula
    name: str,
    theta: Tensor,
    natural: Tensor,
    own: Tensor,
    *,
    beta: float,
    projection: str = "cosine",
    statistics: bool = True,
) -> Tensor:
    """The weights of one tensor."""
    if theta.ndim == 0 or ("running" in name and not statistics):
        return own
    n, a = (natural.double() - theta).flatten(), (own.double() - theta).flatten()
    dot, square = max(float(n @ a), 0.0), float(n @ n)
    factor = 0.0
    if square and dot:
        other = math.sqrt(square) * float(a.norm())
        factor = dot / (other if projection == "cosine" else square)
    return (theta + (beta * factor * n + (1 - beta) * a).view_as(theta)).to(theta.dtype)

"""AutoLoRa beside a plain version in fp64, and its rate."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from given_norms import WithBN, trained_on
from small import run_small
from tiny_models import images
from torch import Tensor, nn
from torch.nn import functional

from roli_fast.attacks import PGD
from roli_fast.data import Batch
from roli_fast.errors import ArgumentError
from roli_fast.train.loop import StageLoop
from roli_fast.train.objectives import AutoLoRa, attach
from roli_fast.train.optim import Auto

ATTACK = PGD(eps=0.1, step_size=None, steps=2)


class Plain(nn.Module):
    """WithBN by functions on given tensors, in training mode."""

    def __init__(self, model: WithBN) -> None:
        super().__init__()
        self.model, self.seen = model, list[tuple[Tensor, Tensor]]()

    def forward(self, x: Tensor, change: Tensor | None = None) -> Tensor:
        """With a change of `mix` nothing but the change and the head has a gradient."""
        own = dict(self.model.named_parameters())
        if change is not None:
            own = {n: p if "head" in n else p.detach() for n, p in own.items()}
            own["mix.weight"] = own["mix.weight"] + change
        maps = functional.conv2d(x, own["conv.weight"], own["conv.bias"])
        self.seen.append((maps.mean((0, 2, 3)), maps.var((0, 2, 3))))
        maps = functional.batch_norm(
            maps, None, None, own["norm.weight"], own["norm.bias"], training=True
        )
        maps = functional.conv2d(maps.relu(), own["mix.weight"], own["mix.bias"])
        return functional.linear(maps.mean((2, 3)), own["head.weight"], own["head.bias"])


@pytest.mark.parametrize(
    ("shape", "a", "b"), [("kernel", (6, 12), (12, 6)), ("flat", (2, 36), (4, 2))]
)
def test_loss_gradients_and_statistics_by_hand(
    shape: Any, a: tuple[int, int], b: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    model, objective = WithBN().double().train(), AutoLoRa(rank=2, alpha=3.0, shape=shape)
    names = attach(model, objective, 0)
    assert names == ["beside.a.0", "beside.b.0"]
    low, high = (model.get_parameter(name) for name in names)
    assert low.shape == a and high.shape == b and not high.any()
    nn.init.normal_(high, std=0.1)
    x, y, ids = images(5, 3, 8, 8).double(), torch.arange(5) % 4, torch.arange(5)
    x_adv = ATTACK(model, x, y, torch.Generator().manual_seed(0), sample_ids=ids)
    twin = Plain(copy.deepcopy(model))
    low, high = (twin.model.get_parameter(name) for name in names)
    clean = twin(x, 1.5 * (high @ low).reshape(4, 4, 3, 3))
    moved = twin(x_adv)
    p, q = clean.softmax(1), moved.softmax(1)
    loss = 0.6 * functional.cross_entropy(clean, y) + 0.4 * functional.cross_entropy(moved, y)
    loss = loss + 6 * 0.4 * (p * (p.log() - q.log())).sum() / 5
    terms = trained_on(objective, model, Batch(x, y, ids), ATTACK, accuracy=0.4)
    assert terms.loss.item() == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(terms.logits, moved)
    terms.loss.backward()
    loss.backward()
    for (name, ours), theirs in zip(model.named_parameters(), twin.model.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None, name
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-12)
    for place, name in enumerate(("running_mean", "running_var")):
        value = torch.tensor(float(place), dtype=torch.float64)
        for found in twin.seen:
            value = 0.9 * value + 0.1 * found[place]
        torch.testing.assert_close(model.get_buffer(f"norm.{name}"), value)


def test_a_network_without_layers_for_it_is_told() -> None:
    with pytest.raises(ArgumentError, match="`objective`: expected a network with convolutions"):
        AutoLoRa().beside(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.Generator())


@pytest.mark.parametrize(
    ("scores", "halvings"),
    [
        ([0.1, 0.2, 0.3, 0.4], 0),  # no look yet
        ([0.1, 0.2, 0.3, 0.2, 0.4], 0),  # three of four rose
        ([0.1, 0.2, 0.1, 0.2, 0.2], 1),  # two
        ([0.1, 0.2, 0.1, 0.2, 0.2, 0.3, 0.4, 0.5, 0.6], 1),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.1, 0.2, 0.3, 0.4], 1),  # three rose, none is the best
        ([0.3, 0.2, 0.1, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1], 2),
    ],
)
def test_the_rate_is_halved_by_hand(scores: list[float], halvings: int) -> None:
    assert Auto().halvings(scores) == halvings
    assert Auto().ended(scores) == Auto(lowest=0.3).ended(scores[:1]) == False  # noqa: E712
    assert Auto(lowest=0.3).ended(scores) == (halvings == 2)


def test_the_loop_follows_its_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks every second validation: after the third the rate is halved, and after the fifth again,
    which ends the stage. Each time it goes on from the best weights, those of the first epoch."""
    scores, kept = iter([0.5, 0.4, 0.3, 0.2, 0.1]), list[bool]()
    validate, finish = StageLoop._validate, StageLoop._finish_epoch

    def scripted(self: StageLoop) -> dict[str, float]:
        return validate(self) | {"validation_robust_accuracy": next(scores)}

    def watched(self: StageLoop, epoch: int) -> None:
        finish(self, epoch)
        own = self.model.state_dict()
        kept.append(all(torch.equal(own[name], t) for name, t in self.best.items()))

    monkeypatch.setattr(StageLoop, "_validate", scripted)
    monkeypatch.setattr(StageLoop, "_finish_epoch", watched)
    own = {"window": 2, "rises": 2, "lowest": 0.3}
    flags = ["--ranli.schedule=auto", *(f"--ranli.schedule.{n}={v}" for n, v in own.items())]
    flags += ["--methods=ranli", "--ranli.epochs=9", "--ranli.warmup_epochs=0"]
    run_small(tmp_path / "run", *flags, "--ranli.optimizer.lr=0.01")
    rows = [json.loads(row) for row in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows] == [0.01, 0.01, 0.01, 0.005, 0.005]
    assert kept == [True, False, True, False, True]

"""FAB and FAB-T: what they return, what they cost, and what they leave alone."""

from typing import Any

import pytest
import torch
from oracle import Net, batch, margins
from tiny_attacks import generator
from tiny_models import Counting, FixedLogits, images
from torch import Tensor, nn

from roli_fast.attacks.fab import FAB, FABT
from roli_fast.compat.original_draws import OriginalFAB
from roli_fast.engine import Cost
from roli_fast.norms import NORMS

KINDS = (FAB, FABT)
EPS = {"linf": 0.055, "l2": 1.06, "l1": 9.0}
WEIGHT = torch.tensor([[4.0, 1.0, 0.0], [0.0, -1.0, 2.0], [-3.0, 0.0, 1.0]]).double()
POINT = torch.tensor([[0.6, 0.5, 0.4]]).double()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("norm", "nearest"),
    [
        # logits 2.9, .3, -1.4: to class 1 the gap is 2.6 and the normal (-4, -2, 2)
        ("linf", 2.6 / 8),
        ("l2", 2.6 / 24**0.5),
        ("l1", 0.6 + 0.2 / 2),  # the first entry down to 0 is worth 2.4; .1 of another the rest
    ],
)
def test_a_linear_model_by_hand(kind: Any, norm: str, nearest: float) -> None:
    model, y = FixedLogits(WEIGHT), torch.tensor([0])
    result = kind(norm=norm, eps=0.99, steps=20).run(model, POINT, y)
    assert result.fooled.tolist() == [True]
    assert nearest <= result.distance.item() <= nearest * 1.01
    assert torch.equal(result.distance, NORMS[norm].distance(result.x_adv, POINT))
    beyond = kind(norm=norm, eps=nearest * 0.95, steps=20).run(model, POINT, y)
    assert torch.equal(beyond.x_adv, POINT) and beyond.x_adv is not POINT
    assert beyond.fooled.tolist() == [False] and torch.equal(beyond.distance, result.distance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", EPS)
def test_flags_and_distances_are_true(kind: Any, norm: str) -> None:
    model = Net()
    x, y = batch(16, model)
    result = kind(norm=norm, eps=EPS[norm], steps=15).run(model, x, y)
    assert torch.equal(result.fooled, margins(model, result.x_adv, y) > 0)
    moved = NORMS[norm].distance(result.x_adv, x)
    assert 0 < (moved > 0).sum() < 13
    assert torch.equal(moved[result.fooled], result.distance[result.fooled])
    assert (result.distance[~result.fooled] > EPS[norm]).all()
    wrong = margins(model, x, y) > 0
    assert result.distance[wrong].eq(0).all() and wrong.sum() == 3


@pytest.mark.parametrize(("kind", "norm"), [(FAB, "l2"), (FABT, "linf"), (FABT, "l1")])
def test_leaving_early_fools_the_same_samples_at_less_cost(kind: Any, norm: str) -> None:
    model = Net()
    x, y = batch(12, model)
    attack = dict(norm=norm, eps=EPS[norm], steps=10)
    whole = kind(**attack).run(model, x, y)
    early = kind(**attack, minimal=False).run(model, x, y)
    assert torch.equal(whole.fooled, early.fooled) and whole.fooled.sum() > 2
    assert (early.distance >= whole.distance).all()
    assert early.cost.forward_images < whole.cost.forward_images
    assert early.cost.backward_images < whole.cost.backward_images


class Robust(nn.Module):
    """Class 0 of 4 for every image in the box, with a slope."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.flatten(1).mean(1)
        return torch.stack([total + 9, total, -total, 2 * total], dim=1)


@pytest.mark.parametrize(("kind", "backwards"), [(FAB, 3), (FABT, 1)])
def test_the_cost_where_nothing_is_found(kind: Any, backwards: int) -> None:
    """One clean forward; then a run: one forward at its start and one after each step."""
    model = Counting(Robust())
    result = kind(norm="linf", eps=0.1, steps=7).run(model, images(3, 5), torch.zeros(3).long())
    runs = 1 if kind is FAB else 3
    assert result.cost == Cost(1 + runs * 8, runs * 7 * backwards)
    assert result.cost == Cost(model.forwards, model.backwards)
    assert result.cost.forward_images == 3 * result.cost.forwards
    assert result.distance.isinf().all()


def test_the_cost_where_every_step_fools() -> None:
    """Two logits +-(mean - .5): each step ends beyond the boundary, and is stepped back from."""
    weight = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]).double()
    bias = torch.tensor([-1.0, 1.0]).double()
    model, y = Counting(FixedLogits(weight, bias)), torch.tensor([0, 0, 0])
    x = torch.tensor([[0.6, 0.6], [0.7, 0.55], [0.8, 0.8]]).double()
    attack = FABT(norm="l2", eps=0.9, steps=6, final_search=2)
    result = attack.run(model, x, y)
    # 1 clean, 1 at the start, 6 after the steps, 5 after steps back, 2 in the final search
    assert result.cost == Cost(1 + 1 + 6 + 5 + 2, 6) == Cost(model.forwards, model.backwards)


class Gate(nn.Module):
    """Class 0 by a margin that follows x_0, and by 9 more where x_1 (no slope) is above a half."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0] - 0.4 + 9 * (x[:, 1] > 0.5), x[:, 0] * 0], dim=1)


def test_only_what_stepped_back_is_computed_again() -> None:
    """One of five samples is fooled by the first step: its forward and backward are repeated."""
    model = Counting(Gate())
    x = torch.tensor([[0.5, 0.0]] + [[0.5, 1.0]] * 4).double()
    y = torch.zeros(5).long()
    result = FABT(norm="linf", eps=0.2, steps=2, final_search=0).run(model, x, y)
    assert result.fooled is not None and result.fooled.tolist() == [True] + [False] * 4
    assert result.cost == Cost(1 + 1 + 2 + 1, 3) == Cost(model.forwards, model.backwards)
    assert result.cost.forward_images == 4 * 5 + 1
    assert result.cost.backward_images == 5 + 5 + 1


class Remembering(Robust):
    """Keeps every batch that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return super().forward(x)


@pytest.mark.parametrize("kind", [FAB, OriginalFAB])
@pytest.mark.parametrize("norm", EPS)
def test_later_runs_start_within_half_the_radius(kind: Any, norm: str) -> None:
    model, x = Remembering(), images(4, 3, 5, 5).double()
    attack = kind(norm=norm, eps=EPS[norm], steps=2, restarts=3)
    attack(model, x, torch.zeros(4).long(), generator())
    assert len(model.seen) == 1 + 3 * 3
    starts = [model.seen[place] for place in (1, 4, 7)]  # the clean images come first
    assert torch.equal(starts[0], x)
    for start in starts[1:]:
        distance = NORMS[norm].distance(start, x)
        assert (distance > 0).all() and (distance <= EPS[norm] / 2 + 1e-12).all()
        assert start.min() >= 0 and start.max() <= 1
    assert not torch.equal(starts[1], starts[2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_few_classes(kind: Any, classes: int) -> None:
    """A single class cannot be left."""
    x, y = images(6, 5, seed=2).double(), torch.arange(6) % classes
    weight = torch.randn(classes, 5, generator=generator(1)).double()
    model = Counting(FixedLogits(weight))
    result = kind(norm="linf", eps=0.3, steps=5).run(model, x, y)
    assert torch.equal(result.fooled, margins(model.inner, result.x_adv, y) > 0)
    assert classes == 1 or 0 < result.fooled.sum() < 6
    assert result.cost.backwards == 5 * (classes - 1)


def test_gradients_that_are_no_numbers_move_nothing() -> None:
    class Steep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            root = (x[:, 0] * 0).sqrt()  # slope inf * 0
            return torch.stack([root + x[:, 1], root + 0.9 * x[:, 2]], dim=1)

    x = torch.tensor([[0.5, 0.5, 0.5]]).double()
    result = FABT(norm="linf", eps=0.2, steps=10).run(Steep(), x, torch.tensor([0]))
    assert result.fooled is not None and result.fooled.all()
    assert result.x_adv.isfinite().all() and result.x_adv[0, 0] == 0.5


class Curved(nn.Module):
    """One number x a sample, class 1 above 0.3; the margin bends, so that secants are not exact."""

    def forward(self, x: Tensor) -> Tensor:
        height = torch.exp(4 * x) - torch.exp(torch.tensor(1.2))
        return torch.cat([-height, height], dim=1)


def test_the_secant_closes_in_on_the_boundary() -> None:
    x, y = torch.tensor([[0.0]]), torch.tensor([0])
    result = FAB(norm="linf", eps=0.9, steps=1, final_search=8).run(Curved(), x, y)
    assert 0.3 < float(result.x_adv) < 0.301

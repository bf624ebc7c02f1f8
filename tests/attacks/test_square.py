"""The Square attack: what it returns and costs; its schedule, windows, patterns and numbers."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracle import Net, batch, margins
from tiny_attacks import generator
from tiny_models import Counting, FixedLogits, images
from torch import Tensor, nn

from roli_fast.attacks.square import CHUNK, SampleDraws, Square, share_of
from roli_fast.compat.original_draws import OriginalSquare
from roli_fast.engine import Cost
from roli_fast.errors import ArgumentError
from roli_fast.norms import NORMS
from roli_fast.norms.windows import pattern, window

EPS = {"linf": 0.25, "l2": 5.0, "l1": 60.0}


def within(norm: str, x_adv: Tensor, x: Tensor, eps: float) -> bool:
    radius = torch.tensor(eps, dtype=x.dtype).double()  # eps means its value in this dtype
    inside = (NORMS[norm].distance(x_adv, x) <= radius).all()
    return bool(inside) and 0 <= x_adv.min().item() and x_adv.max().item() <= 1


@pytest.mark.parametrize(
    ("norm", "loss"), [("linf", "margin"), ("linf", "ce"), ("l2", "ce"), ("l1", "margin")]
)
def test_flags_queries_and_images_are_true(norm: str, loss: str) -> None:
    model = Net()
    x, y = batch(16, model)
    result = Square(norm=norm, eps=EPS[norm], n_queries=60, loss=loss).run(model, x, y, generator())
    assert torch.equal(result.fooled, margins(model, result.x_adv, y) > 0)
    assert within(norm, result.x_adv, x, EPS[norm])
    wrong = margins(model, x, y) > 0
    assert wrong.sum() < result.fooled.sum() <= 16  # pyright: ignore
    assert torch.equal(result.x_adv[wrong], x[wrong])
    assert result.queries is not None and result.queries[wrong].eq(1).all()
    assert result.queries[~result.fooled].eq(62).all()  # clean, start, 60 proposals
    assert result.queries.sum() == result.cost.forward_images
    assert result.queries.max() == result.cost.forwards


@pytest.mark.parametrize(("norm", "loss"), [("linf", "margin"), ("l2", "ce"), ("l1", "margin")])
def test_towards_a_target(norm: str, loss: str) -> None:
    """An image is fooled when it is classified as its target; what was so is not searched."""
    model = Net()
    x, y = batch(16, model)
    with torch.no_grad():
        likeliest, target = model(x).topk(2).indices.T.contiguous()
        target[3] = likeliest[3]
    y = torch.where(y == target, (target + 1) % 10, y)
    attack = Square(norm=norm, eps=EPS[norm], n_queries=60, loss=loss)
    result = attack.run(model, x, y, generator(), target=target)
    with torch.no_grad():
        reached = model(result.x_adv).argmax(1) == target
    assert torch.equal(result.fooled, reached) and within(norm, result.x_adv, x, EPS[norm])
    assert torch.equal(result.x_adv[3], x[3]) and 2 <= reached.sum() <= 16
    with pytest.raises(ArgumentError, match="`target`: expected other classes than `y`"):
        attack.run(model, x, y, generator(), target=y)


class Unmoved(nn.Module):
    """Class 1 of 3 whatever comes; it fails where a gradient is asked for."""

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled() and not x.requires_grad
        return torch.tensor([0.0, 1.0, 0.5]).expand(len(x), 3)


@pytest.mark.parametrize("norm", EPS)
def test_the_cost_where_nothing_is_fooled(norm: str) -> None:
    model = Counting(Unmoved())
    attack = Square(norm=norm, eps=0.5, n_queries=9, restarts=2)
    result = attack.run(model, images(3, 2, 6, 6), torch.ones(3).long(), generator())
    assert result.cost == Cost(1 + 2 * (1 + 9), 0) == Cost(model.forwards, model.backwards)
    assert result.cost.forward_images == 3 * result.cost.forwards
    assert result.queries is not None and result.queries.tolist() == [21, 21, 21]


def test_nothing_is_asked_once_all_are_fooled() -> None:
    model, x = Counting(Unmoved()), images(3, 2, 6, 6)
    result = Square(n_queries=50).run(model, x, torch.zeros(3).long(), generator())
    assert result.cost == Cost(1, 0) and torch.equal(result.x_adv, x)
    bright = FixedLogits(torch.stack([torch.ones(72), torch.full((72,), -1.0)]))
    bright.bias = nn.Parameter(torch.tensor([-60.0, 60.0]))
    y = bright(x).argmax(1)
    result = Square(eps=0.9, n_queries=900).run(Counting(bright), x, y, generator())
    assert result.fooled is not None and result.fooled.all() and result.cost.forwards < 902


class Rising(nn.Module):
    """A loss that rises with every forward, so that every proposal stays."""

    def __init__(self) -> None:
        super().__init__()
        self.height = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.height += 1e-3
        return torch.tensor([self.height, 1.0, -9.0]).expand(len(x), 3)


@pytest.mark.parametrize(("kind", "reached"), [(Square, 4), (OriginalSquare, 3)])
def test_every_pixel_can_change(kind: Any, reached: int) -> None:
    """The original's windows never reach the last row and column; ours do."""
    x, seen = torch.full((60, 1, 4, 4), 0.5), torch.zeros(4, 4, dtype=torch.bool)
    attack = kind(eps=0.25, n_queries=1, p_init=0.05, rescale_schedule=False)
    for seed in range(40):
        own = replace(attack, seed=seed) if kind is OriginalSquare else attack
        moved = own(Rising(), x, torch.ones(60).long(), generator(seed))
        stripes = moved.median(dim=2, keepdim=True).values  # one of four rows may differ
        seen |= (moved != stripes).any(0)[0]
    assert seen[:reached, :reached].all() and seen.sum() == reached**2


def test_logits_that_break_down_count_as_fooled_and_nothing_is_raised() -> None:
    class Breaking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = torch.stack([x.flatten(1).sum(1) + 9, x.flatten(1).sum(1)], 1)
            return torch.where(x.flatten(1)[:, :1] == 0.5, logits, torch.nan)

    x = torch.full((2, 1, 4, 4), 0.5)
    result = Square(n_queries=5).run(Breaking(), x, torch.tensor([0, 0]), generator())
    assert result.fooled is not None and result.fooled.all()


@pytest.mark.parametrize(
    ("share", "image", "plain", "odd"),
    [
        (0.8, (32, 32), (29, 29), (29, 29)),  # sqrt(.8) * 32 = 28.6
        (0.4, (32, 32), (20, 20), (21, 21)),  # 20.2, made odd for patterns
        (0.0015625, (32, 32), (1, 1), (3, 3)),  # 1.26; patterns have 3 at least
        (0.8, (24, 40), (24, 32), (24, 33)),  # 27.7 is wider than 24: 768 / 24
        (0.8, (40, 24), (32, 24), (33, 24)),
        (0.8, (1, 7), (1, 6), (1, 7)),  # 5.6, rounded 6, odd 7
        (0.01, (1, 100), (1, 1), (1, 3)),
        (0.8, (4, 4), (4, 4), (4, 4)),  # 3.6, rounded 4, odd 5, but there is no room
        (1.0, (1, 1), (1, 1), (1, 1)),
    ],
)
def test_windows_by_hand(
    share: float, image: tuple[int, int], plain: tuple[int, int], odd: tuple[int, int]
) -> None:
    assert window(share, image) == plain
    assert window(share, image, smallest=3, odd=True) == odd


@pytest.mark.parametrize(
    ("query", "halvings"),
    [(10, 0), (11, 1), (50, 1), (51, 2), (200, 2), (201, 3), (4000, 6), (8000, 8), (8001, 9)],
)
def test_the_schedule_by_hand(query: int, halvings: int) -> None:
    assert share_of(query, 0.8, 10_000, True) == 0.8 / 2**halvings
    assert share_of(query, 0.8, 500, False) == 0.8 / 2**halvings
    if query % 2 == 0:  # half the queries, half the time
        assert share_of(query // 2, 0.8, 5000, True) == 0.8 / 2**halvings


def test_patterns_by_hand() -> None:
    half = 1 / math.sqrt(2)
    assert pattern((2, 1), 2) == [[half], [-half]]
    assert pattern((1, 2), 1) == [[0.5, -0.5]]
    assert pattern((1, 1), 2) == [[-1.0]]
    # rings of a hill of 3 x 3: 1 + 1/4 at the centre, 1/4 around it (l2); 1 + 1/16, 1/16 (l1)
    column = [row[0] for row in pattern((6, 3), 1)]
    hill = 1 + 1 / 16 + 8 / 16
    assert column == pytest.approx([1 / 16 / hill / 2] * 3 + [-1 / 16 / hill / 2] * 3)
    centre = pattern((6, 3), 1)[1][1]
    assert centre == pytest.approx((1 + 1 / 16) / hill / 2)


def test_a_samples_numbers_are_its_own() -> None:
    ids = torch.tensor([5, 2**40, 7])
    whole, one = SampleDraws(("k", 1), ids), SampleDraws(("k", 1), ids[2:])
    assert torch.equal(whole.stripes(3, 9)[2:], one.stripes(3, 9))
    for mine, other in zip(whole.tiles(6, 3), one.tiles(6, 3), strict=True):
        assert torch.equal(mine[2:], other)
    for number in (0, 1, CHUNK - 1, CHUNK, 5 * CHUNK + 3):
        mine, other = (draws.query(number, (4, 9), 3) for draws in (whole, one))
        for field in ("top", "left", "signs", "flip"):
            assert torch.equal(getattr(mine, field)[2:], getattr(other, field))
    whole.keep(torch.tensor([2]))
    assert torch.equal(
        whole.query(5 * CHUNK + 4, (4, 9), 3).top, one.query(5 * CHUNK + 4, (4, 9), 3).top
    )


@pytest.mark.parametrize("channels", [1, 40])
def test_numbers_are_even(channels: int) -> None:
    draws = SampleDraws(("even",), torch.arange(4000))
    proposal = draws.query(7, (4, 0), channels)
    for window_number in range(2):
        counts = torch.bincount(proposal.top[:, window_number], minlength=5)
        assert len(counts) == 5 and (counts - 800).abs().max() < 5 * 800**0.5
        assert not proposal.left[:, window_number].any()  # no room to move
    assert proposal.signs.shape == (4000, channels)
    for signs in (proposal.signs.mean(0), draws.stripes(channels, 5).mean(0).flatten()):
        assert signs.abs().max() < 5 / 4000**0.5
    again = SampleDraws(("odd",), torch.arange(4000)).query(7, (4, 0), channels)
    assert abs((proposal.top == again.top).double().mean().item() - 0.2) < 0.05  # another run
    assert abs(proposal.flip.double().mean().item() - 0.5) < 5 / 4000**0.5 / 2
    correlation = (proposal.signs[:, 0] * (proposal.flip.float() * 2 - 1)).mean().abs()
    assert correlation < 5 / 4000**0.5

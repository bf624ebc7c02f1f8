"""The Square attack's schedule, windows, patterns and numbers."""

import math

import pytest
import torch

from roli_fast.attacks.square import CHUNK, SampleDraws, canvas, share_of
from roli_fast.compat.original_draws import OfficialDraws
from roli_fast.errors import ArgumentError
from roli_fast.norms.windows import pattern, window


@pytest.mark.parametrize(
    ("query", "halvings"),
    [
        (0, 0),
        (10, 0),
        (11, 1),
        (50, 1),
        (51, 2),
        (200, 2),
        (201, 3),
        (4000, 6),
        (8000, 8),
        (8001, 9),
    ],
)
def test_the_schedule_by_hand(query: int, halvings: int) -> None:
    assert share_of(query, 0.8, 10_000, True) == 0.8 / 2**halvings
    assert share_of(query, 0.8, 500, False) == 0.8 / 2**halvings
    if query % 2 == 0:  # half the queries, half the time
        assert share_of(query // 2, 0.8, 5000, True) == 0.8 / 2**halvings


@pytest.mark.parametrize(
    ("share", "image", "expected"),
    [
        (0.8, (32, 32), (29, 29)),  # sqrt(.8) * 32 = 28.6
        (0.0015625, (32, 32), (1, 1)),  # 1.26
        (0.0001, (4, 4), (1, 1)),
        (0.8, (24, 40), (24, 32)),  # 27.7 is wider than 24: 768 / 24
        (0.8, (40, 24), (32, 24)),
        (0.8, (1, 100), (1, 80)),
        (0.01, (1, 100), (1, 1)),
        (0.05, (1, 100), (1, 5)),
        (1.0, (1, 1), (1, 1)),
    ],
)
def test_windows_by_hand(share: float, image: tuple[int, int], expected: tuple[int, int]) -> None:
    assert window(share, image) == expected


@pytest.mark.parametrize(
    ("share", "image", "expected"),
    [
        (0.8, (32, 32), (29, 29)),
        (0.4, (32, 32), (21, 21)),  # 20.2 is made odd
        (0.001, (32, 32), (3, 3)),
        (0.8, (4, 4), (4, 4)),  # 3.6, rounded 4, odd 5, but there is no room
        (0.8, (2, 2), (2, 2)),
        (0.8, (1, 7), (1, 7)),  # 5.6, rounded 6, odd 7
        (0.01, (1, 7), (1, 3)),
    ],
)
def test_windows_of_patterns_by_hand(
    share: float, image: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert window(share, image, smallest=3, odd=True) == expected


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


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("size", [(3, 3), (4, 4), (7, 7), (1, 5), (6, 2), (29, 29)])
def test_patterns_have_length_one_and_two_equal_halves(order: int, size: tuple[int, int]) -> None:
    values = torch.tensor(pattern(size, order), dtype=torch.float64)
    assert values.shape == size
    assert torch.linalg.vector_norm(values, order).item() == pytest.approx(1, rel=1e-12)
    up, down = values.clamp(min=0), values.clamp(max=0)
    halves = [torch.linalg.vector_norm(part, order).item() for part in (up, down)]
    assert halves[0] == pytest.approx(halves[1], rel=1e-12)


def test_shapes_that_are_no_images() -> None:
    assert canvas(torch.zeros(2, 7)) == (1, 1, 7)
    assert canvas(torch.zeros(2, 3, 7)) == (3, 1, 7)
    assert canvas(torch.zeros(2, 3, 5, 7)) == (3, 5, 7)
    with pytest.raises(ArgumentError, match=r"`x`: expected a batch .*got shape \(2, 3, 5, 5, 7\)"):
        canvas(torch.zeros(2, 3, 5, 5, 7))


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


def test_runs_and_samples_differ() -> None:
    ids = torch.arange(200)
    first = SampleDraws(("k", 0), ids).query(3, (999, 999), 3)
    again = SampleDraws(("k", 1), ids).query(3, (999, 999), 3)
    assert (first.top == again.top).float().mean() < 0.02
    assert len(first.top[:, 0].unique()) > 150


@pytest.mark.parametrize("channels", [1, 3, 40])
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
    assert abs(proposal.flip.double().mean().item() - 0.5) < 5 / 4000**0.5 / 2
    correlation = (proposal.signs[:, 0] * (proposal.flip.float() * 2 - 1)).mean().abs()
    assert correlation < 5 / 4000**0.5


def test_official_draws_are_those_of_the_reseeded_global_generator() -> None:
    draws = OfficialDraws(9, torch.device("cpu"))
    with torch.random.fork_rng():
        torch.manual_seed(9)
        assert torch.equal(draws.uniform(2, 3), torch.rand(2, 3))
        assert torch.equal(draws.normal(4, 5), torch.randn(4, 5))
        assert torch.equal(draws.sign(7), torch.sign(2 * torch.rand(7) - 1))
        assert draws.below(6) == int(torch.rand(1) * 6)
        before = torch.get_rng_state()
        draws.below(0)
        assert torch.equal(torch.get_rng_state(), before)

"""The random starts: inside ball and box, uniform, reproducible, and with no effect elsewhere."""

import pytest
import torch
from cases import DTYPES
from scipy import stats
from torch import Tensor

from roli_fast import ops
from roli_fast.ops import random_start as draws

NORMS = ("linf", "l2", "l1")
LENGTH = {
    "linf": lambda change: change.amax(1),
    "l2": lambda change: change.square().sum(1).sqrt(),
    "l1": lambda change: change.sum(1),
}
WIDE = (-100.0, 100.0)


@pytest.fixture(params=NORMS)
def norm(request) -> str:
    return request.param


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start(norm: str, x: Tensor, eps=8 / 255, seed: int = 0, **options) -> Tensor:
    options = {"generator": seeded(seed)} | options
    return getattr(ops, f"{norm}_random_start")(x, eps=eps, **options)


def lengths(norm: str, moved: Tensor, x: Tensor) -> Tensor:
    return LENGTH[norm]((moved.double() - x.double()).abs().reshape(len(x), -1))


def test_a_small_sample_far_from_zero_stays_inside(backend, norm):
    """Few elements, where rounding up the totals has to outweigh every rounding of the draws."""
    for size in (1, 2, 3, 5):
        x = torch.rand(4000, size, generator=seeded(2)) * 90
        moved = start(norm, x, 3.0, bounds=WIDE)
        assert (lengths(norm, moved, x) <= 3.0).all()


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_uniform_in_the_ball(norm, size):
    """The radius has P(r < t) = t^d, coordinates are symmetric, and no direction is preferred."""
    eps = 0.75
    moved = start(norm, torch.zeros(20_000, size), eps, seed=5, bounds=WIDE).double() / eps
    radius = lengths(norm, moved, torch.zeros_like(moved))
    assert stats.kstest((radius**size).numpy(), "uniform").pvalue > 1e-3
    for place in range(size):
        assert stats.kstest(moved[:, place].numpy(), (-moved[:, place]).numpy()).pvalue > 1e-3
        assert stats.kstest(moved[:, place].numpy(), moved[:, 0].numpy()).pvalue > 1e-3
    shift = moved.mean(0).abs().amax() * 20_000**0.5
    assert shift < 4.5  # every variance is below 1
    if norm == "l2" and size > 1:
        turned = (moved[:, 0] + moved[:, 1]) / 2**0.5
        assert stats.kstest(turned.numpy(), moved[:, 0].numpy()).pvalue > 1e-3


def test_neighbouring_draws_are_not_related(norm):
    """Elements, samples and seeds side by side: correlations of 50,000 draws below 5 / sqrt(n)."""
    one = start(norm, torch.zeros(2, 50_000), 50.0, bounds=WIDE).double()
    other = start(norm, torch.zeros(2, 50_000), 50.0, seed=1, bounds=WIDE).double()
    pairs = [(one[0], one[1]), (one[0], other[0])]
    pairs += [(one[0, lag:], one[0, :-lag]) for lag in (1, 2, 3, 4)]
    pairs += [(a.square(), b.square()) for a, b in pairs]
    for a, b in pairs:
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 5 / 50_000**0.5


KNOWN = [  # Random123 1.09, kat_vectors: counter, key, words of philox4x32-10
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def signed(low: int, high: int) -> Tensor:
    """The int64 with these 32-bit halves."""
    value = low | high << 32
    return torch.tensor([value - 2**64 if value >= 2**63 else value])


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_known_answers(counter, key, expected):
    found = draws.philox(signed(*key), signed(*counter[:2]), signed(*counter[2:]))
    assert [word.item() for word in found] == list(expected)


def test_neither_batch_nor_order_matters(backend, norm):
    x, ids = torch.rand(5, 3, 7, 5), torch.tensor([4, 2**40, -1, 0, 7])
    whole = start(norm, x, 0.3, sample_ids=ids)
    turn = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(start(norm, x[turn], 0.3, sample_ids=ids[turn]), whole[turn])
    for i in range(5):
        assert torch.equal(start(norm, x[i : i + 1], 0.3, sample_ids=ids[i : i + 1])[0], whole[i])
    assert torch.equal(start(norm, x, 0.3), start(norm, x, 0.3, sample_ids=torch.arange(5)))
    strided = torch.stack([ids, -ids], 1)[:, 0]
    assert torch.equal(start(norm, x, 0.3, sample_ids=strided), whole)
    assert len({tuple(row.flatten().tolist()) for row in start(norm, x * 0 + 0.5, 0.3)}) == 5


def test_every_dtype_gets_the_same_draws(backend, norm):
    x = torch.full((2, 64), 0.5)
    exact = start(norm, x.double(), 0.25)
    for dtype in DTYPES:
        off = (start(norm, x.to(dtype), 0.25).double() - exact).abs().max()
        assert off <= 2e-7 + 0.5 * torch.finfo(dtype).eps


def test_layout_is_kept_and_does_not_change_the_draws(backend, norm):
    for shape in ((2, 3, 8, 8), (2, 4, 5, 7), (3, 1, 6, 2)):
        x = torch.rand(shape, generator=seeded(2))
        plain = start(norm, x)
        last = x.contiguous(memory_format=torch.channels_last)
        for other in (last, x.transpose(2, 3).contiguous().transpose(2, 3)):
            moved = start(norm, other)
            assert torch.equal(moved, plain) and moved.stride() == other.stride()
    expanded = torch.rand(1, 3, 5).expand(4, 3, 5)
    assert torch.equal(start(norm, expanded), start(norm, expanded.contiguous()))


def test_the_generator_gives_one_number(norm):
    generator, other = seeded(), seeded()
    first = start(norm, torch.full((7, 5), 0.5), generator=generator)
    assert not torch.equal(first, start(norm, torch.full((7, 5), 0.5), generator=generator))
    torch.randint(-(2**63), 2**63 - 1, (2,), generator=other)
    assert torch.equal(generator.get_state(), other.get_state())
    assert not torch.equal(first, start(norm, torch.full((7, 5), 0.5), seed=1))


def test_autograd_does_not_follow(norm):
    x = torch.rand(2, 3, requires_grad=True)
    eps = torch.full((2,), 0.1, requires_grad=True)
    assert not start(norm, x, eps).requires_grad


def test_special_numbers(backend, norm):
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([[nan, 0.5, 0.5], [inf, -inf, 0.5], [-3.0, 3.0, -0.0]])
    moved = start(norm, x, 0.25)
    assert moved.isnan().tolist() == [[True, False, False], [False] * 3, [False] * 3]
    assert moved[1, :2].tolist() == [1.0, 0.0] and moved[2, :2].tolist() == [0.0, 1.0]
    assert not torch.signbit(moved[2]).any()
    assert start(norm, x[1:, 2:], torch.tensor([nan, 0.1])).isnan().tolist() == [[True], [False]]

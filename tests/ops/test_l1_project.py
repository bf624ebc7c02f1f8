"""What the L1 projection computes: by hand, against an exact solution, and its properties."""

import l1_exact
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roli_fast import ops
from roli_fast.ops import native

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.fixture(params=native.BACKENDS)
def backend(request):
    """Every test here runs on both implementations (twice on the reference without `_C`)."""
    with ops.use_backend(request.param):
        yield request.param


def project(x_adv: Tensor, x: Tensor, eps, **options) -> Tensor:
    return ops.l1_project_(x_adv.clone(), x, eps=eps, **options)


def images(shape, dtype=torch.float32, seed: int = 0, spread: float = 0.3):
    """Images, and points around them that leave the box in places."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator).to(dtype)
    noise = spread * torch.randn(shape, generator=generator)
    return (x.float() + noise).to(dtype), x


def lengths(moved: Tensor, x: Tensor) -> Tensor:
    return (moved.double() - x.double()).abs().reshape(len(x), -1).sum(1)


def test_hand_worked_numbers(backend):
    x = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    x_adv = torch.tensor([[0.75, 0.375, 0.5625, 0.5]])  # d = 1/4, -1/8, 1/16, 0
    moved = ops.l1_project_(x_adv, x, eps=0.25)
    # Above the third: (1/4 - a) + (1/8 - a) = 1/4 at a = 1/16.
    assert moved is x_adv
    assert torch.allclose(moved, torch.tensor([[0.6875, 0.4375, 0.5, 0.5]]), rtol=0, atol=1e-7)


def test_room_is_used_before_the_threshold_rises(backend):
    """d = (1/2, 1/4) with a room of 1/8 for the first: it stays at the box, the second is cut."""
    x, x_adv = torch.tensor([[0.875, 0.5]]), torch.tensor([[1.375, 0.75]])
    moved = project(x_adv, x, 0.25)
    assert torch.allclose(moved, torch.tensor([[1.0, 0.625]]), rtol=0, atol=1e-7)
    assert torch.equal(project(x_adv, x, 0.375), torch.tensor([[1.0, 0.75]]))
    assert torch.equal(project(x_adv, x, 5.0), torch.tensor([[1.0, 0.75]]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 3, 16, 16), (4, 1), (2, 1000), (5, 2, 3)], ids=str)
@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.25, 3.0, 40.0, 1e6])
def test_inside_ball_and_box_exactly(backend, dtype, shape, eps):
    x_adv, x = images(shape, dtype)
    moved = project(x_adv, x, eps)
    radius = torch.tensor(eps, dtype=torch.float64 if dtype is torch.float64 else torch.float32)
    assert (lengths(moved, x) <= radius.double()).all()
    assert (moved >= 0).all() and (moved <= 1).all()
    assert torch.equal(project(moved, x, eps), moved)  # idempotent, bit for bit
    inside = lengths(x_adv.clamp(0, 1), x) <= radius.double()
    assert torch.equal(moved[inside], x_adv.clamp(0, 1)[inside])
    if eps == 0:
        assert torch.equal(moved, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1, 2, 17, 3072])
def test_equals_the_solution_by_sorting(backend, dtype, size):
    x_adv, x = images((6, size), dtype, seed=size)
    x[:, ::3] = (x[:, ::3] > 0.5).to(dtype)  # pixels at the box
    for eps in (0.01, 0.05 * size, 0.2 * size):
        moved = project(x_adv, x, eps)
        for i in range(6):
            exact = l1_exact.project(x_adv[i], x[i], eps, 0.0, 1.0)
            assert (moved[i].double() - exact).abs().max() < 2e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_optimality_conditions(backend, dtype):
    """One threshold for all: coordinates between x and the box moved by it, those at x by no more,
    those at the box could have moved further; and the ball is used up."""
    x_adv, x = images((8, 3, 32, 32), dtype, seed=3)
    x_adv, x, tolerance = x_adv.flatten(1), x.flatten(1), 2e-7
    eps = torch.tensor([1.0, 5.0, 12.0, 40.0, 100.0, 200.0, 300.0, 400.0])
    moved = project(x_adv, x, eps)
    assert ((eps.double() - lengths(moved, x)) / eps < 1e-5).all()
    for i in range(8):
        shift = (x_adv[i].double() - moved[i].double()).abs()
        at_x, at_box = moved[i] == x[i], (moved[i] == 0) | (moved[i] == 1)
        free = ~at_x & ~at_box
        assert free.sum() > 2
        threshold = shift[free].mean()
        assert (shift[free] - threshold).abs().max() < tolerance
        assert (shift[at_x] <= threshold + tolerance).all()
        assert (shift[at_box & ~at_x] >= threshold - tolerance).all()
        assert ((moved[i] - x[i]).double() * (x_adv[i] - x[i]).double() >= 0).all()


def test_no_sampled_feasible_point_is_nearer(backend):
    x_adv, x = images((4, 12), torch.float64, seed=9)
    moved = project(x_adv, x, 0.7)
    best = (moved - x_adv).square().sum(1)
    for seed in range(200):
        points = ops.l1_random_start(x, eps=0.7, generator=torch.Generator().manual_seed(seed))
        for weight in (1.0, 0.1, 0.001):  # near the result too: the set is convex
            other = moved + weight * (points - moved)
            assert ((other - x_adv).square().sum(1) >= best - 1e-12).all()


def test_equal_coordinates_stay_equal(backend):
    """Ties: all move by the same amount, not some first."""
    x, x_adv = torch.full((1, 8), 0.5), torch.full((1, 8), 0.625)
    assert project(x_adv, x, 0.5).unique().tolist() == pytest.approx([0.5625], abs=1e-7)
    x_adv[0, :4] = 0.375
    assert project(x_adv, x, 0.5).unique().tolist() == pytest.approx([0.4375, 0.5625], abs=1e-7)


def test_per_sample_eps_and_independence_of_the_batch(backend):
    x_adv, x = images((6, 3, 9, 7), seed=4)
    eps = torch.tensor([0.0, 0.1, 1.0, 5.0, 20.0, 100.0], dtype=torch.float64)
    whole = project(x_adv, x, eps)
    turn = torch.tensor([5, 3, 0, 1, 4, 2])
    assert torch.equal(project(x_adv[turn], x[turn], eps[turn]), whole[turn])
    for i, radius in enumerate(eps.tolist()):
        assert torch.equal(project(x_adv[i : i + 1], x[i : i + 1], radius)[0], whole[i])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_numbers(backend, dtype):
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([[0.5, nan, 0.5], [0.5] * 3, [0.5] * 3], dtype=dtype)
    x_adv = torch.tensor([[nan, 0.5, 0.75], [inf, 0.5, 0.5], [-inf, 0.5, 0.625]], dtype=dtype)
    moved = project(x_adv, x, 0.25)
    assert moved[0].isnan().tolist() == [True, True, False] and moved[0, 2] == 0.75
    assert moved[1].tolist() == [0.5, 0.5, 0.5]  # its room is larger than the ball: back to x
    assert project(x_adv, x, 0.75)[1:].tolist() == [[1.0, 0.5, 0.5], [0.0, 0.5, 0.625]]
    lost = project(x_adv[1:], x[1:], torch.tensor([nan, 0.25]))
    assert lost.isnan().tolist() == [[True] * 3, [False] * 3]
    outside = torch.tensor([[-3.0, 3.0, 0.5]], dtype=dtype)
    assert project(outside + 0.25, outside, 0.25).tolist() == [[0.0, 1.0, 0.5]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_is_written_without_a_sign(backend, dtype):
    x = torch.tensor([[0.0, -0.0, 0.125]], dtype=dtype)
    x_adv = torch.tensor([[-0.0, -0.0, -0.0]], dtype=dtype)
    for eps in (0.0, 0.125, 1.0):
        assert not torch.signbit(project(x_adv, x, eps, bounds=(-1.0, 1.0))).any()


def test_empty_batches(backend):
    for shape in ((0, 3, 4, 4), (2, 0), (0,)):
        assert project(torch.zeros(shape), torch.zeros(shape), 1.0).shape == shape


@st.composite
def cases(draw):
    dtype = draw(st.sampled_from(DTYPES))
    size = draw(st.integers(1, 40))
    seed, spread = draw(st.integers(0, 2**31)), draw(st.sampled_from([0.0, 1e-3, 0.1, 3.0]))
    low = draw(st.sampled_from([0.0, -1.7, -100.0]))
    x_adv, x = images((2, size), dtype, seed, spread)
    eps = draw(st.sampled_from([0.0, 1e-6, 1e-40]) | st.floats(0, 20))
    return x_adv, x, eps, (low, 1.0)


@given(case=cases())
@settings(max_examples=300, deadline=None)
def test_any_numbers(case):
    x_adv, x, eps, bounds = case
    radius = torch.tensor(eps, dtype=torch.float64 if x.dtype is torch.float64 else torch.float32)
    results = []
    for name in native.BACKENDS:
        with ops.use_backend(name):
            results.append(project(x_adv, x, eps, bounds=bounds))
    moved = results[0]
    assert torch.equal(*results)
    assert (lengths(moved, x) <= radius.double()).all()
    assert (moved >= bounds[0]).all() and (moved <= 1).all()
    assert torch.equal(project(moved, x, eps, bounds=bounds), moved)
    boxed = x_adv.clamp(*bounds)
    assert (moved >= torch.minimum(x, boxed)).all() and (moved <= torch.maximum(x, boxed)).all()

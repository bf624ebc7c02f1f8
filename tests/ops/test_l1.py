"""The L1 projection and step: by hand, an exact solution, AutoAttack's formula, properties."""

import oracles
import pytest
import torch
from cases import DTYPES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roli_fast import ops
from roli_fast.ops import native


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1, 2, 17, 3072])
def test_equals_the_solution_by_sorting(backend, dtype, size):
    x_adv, x = images((6, size), dtype, seed=size)
    x[:, ::3] = (x[:, ::3] > 0.5).to(dtype)  # pixels at the box
    for eps in (0.01, 0.05 * size, 0.2 * size):
        moved = project(x_adv, x, eps)
        for i in range(6):
            exact = oracles.l1_project(x_adv[i], x[i], eps, 0.0, 1.0)
            assert (moved[i].double() - exact).abs().max() < 2e-7


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
@settings(max_examples=60, deadline=None)
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


FAR = 1e6  # a ball in which no step ends


def step(x_adv, grad, x, **options) -> Tensor:
    options = {"eps": FAR, "step_size": 0.5, "density": 0.5, "bounds": (-1e4, 1e4)} | options
    return ops.l1_step_(x_adv.clone(), grad, x, **options)


def test_a_step_by_hand(backend):
    x = torch.full((1, 4), 0.5)
    grad = torch.tensor([[3.0, -0.5, -7.0, 1e-30]])
    x_adv = x.clone()
    moved = ops.l1_step_(x_adv, grad, x, eps=1.0, step_size=0.25, density=0.5)
    assert moved is x_adv and moved.tolist() == [[0.625, 0.5, 0.375, 0.5]]
    ops.l1_step_(x_adv, grad, x, eps=1.0, step_size=0.25, density=0.25)
    assert moved.tolist() == [[0.625, 0.5, 0.125, 0.5]]
    ops.l1_step_(x_adv, grad, x, eps=0.25, step_size=0.0, density=1.0)
    assert torch.allclose(moved, torch.tensor([[0.5, 0.5, 0.25, 0.5]]), rtol=0, atol=1e-7)


@pytest.mark.parametrize("size", [1, 2, 10, 57, 3072])
def test_autoattack_moves_the_same_entries(backend, size):
    generator = torch.Generator().manual_seed(size)
    grad = torch.randn(40, size, generator=generator)
    grad[:, ::4] = grad[:, :1].clone()  # ties
    x = torch.rand(40, size, generator=generator)
    density = torch.rand(40, generator=generator)
    density[:6] = torch.tensor([0.0, 1.0, 0.2, 0.05, 1e-4, 0.999])
    length = torch.linspace(0.0, 3.0, 40)
    moved = step(x, grad, x, step_size=length, density=density)
    expected = oracles.l1_autoattack_step(x, grad, length, density)
    assert torch.equal(moved != x, expected != x)
    assert (moved - expected).abs().max() < 3e-7


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_step_zeros_do_not_count(backend, density):
    x = torch.full((2, 5), 0.5)
    grad = torch.tensor([[0.0, -0.0, 0.0, 0.0, 0.0], [0.0, 0.0, -2.0, 0.0, -0.0]])
    moved = step(x, grad, x, step_size=0.25, density=density)
    assert moved.tolist() == [[0.5] * 5, [0.5, 0.5, 0.25, 0.5, 0.5]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_step_is_the_sparse_move_rounded_once_and_then_the_projection(backend, dtype):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(3, 3, 8, 8, generator=generator).to(dtype)
    x_adv = x.clone()
    for _ in range(4):
        grad = torch.randn(x.shape, generator=generator).to(dtype)
        options = {"step_size": 1.0, "density": 0.1}
        free = step(x_adv, grad, x, **options)
        x_adv = ops.l1_step_(x_adv, grad, x, eps=0.3, **options)
        assert torch.equal(ops.l1_project_(free, x, eps=0.3), x_adv)


def test_densities_outside_their_range_in_a_tensor_are_cut(backend):
    x, grad = torch.full((3, 4), 0.5), torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 3)
    nan = float("nan")
    moved = step(x, grad, x, step_size=0.5, density=torch.tensor([-1.0, 7.0, nan]))
    assert (moved != x).sum(1).tolist() == [1, 4, 4]

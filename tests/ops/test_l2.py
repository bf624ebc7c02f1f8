"""L2 and APGD steps: by hand, the textbook in fp64, special values, what holds for all numbers."""

import math

import oracles
import pytest
import torch
from cases import DTYPES, SPHERES, TEXTBOOK, amounts, batch, distance, radius
from hypothesis import given, settings
from hypothesis import strategies as st

from roli_fast import ops
from roli_fast.ops import native
from roli_fast.ops.rounding import box_limits

SHAPES = [(3, 5), (2, 3, 7, 11), (4, 1, 1, 1), (1, 700), (5, 3, 8, 8)]


@pytest.fixture(params=SPHERES)
def op(request):
    return SPHERES[request.param]


def test_a_projection_by_hand(backend):
    x = torch.zeros(3, 2)
    x_adv = torch.tensor([[3.0, 4.0], [0.25, -0.5], [0.0, -8.0]])
    moved = ops.l2_project_(x_adv, x, eps=2.5, bounds=(-2.0, 2.0))
    assert moved is x_adv
    expected = torch.tensor([[1.5, 2.0], [0.25, -0.5], [0.0, -2.0]])
    assert torch.allclose(moved, expected, rtol=1e-6, atol=0)
    assert torch.equal(moved[1], expected[1]) and torch.equal(moved[2], expected[2])


def test_a_step_by_hand(backend):
    x = torch.full((3, 2), 0.5)
    x_adv = torch.tensor([[0.5, 0.5], [0.5, 0.75], [0.5, 0.5]])
    grad = torch.tensor([[3.0, -4.0], [0.0, 7.0], [0.0, 0.0]])
    moved = ops.l2_step_(x_adv, grad, x, eps=0.3125, step_size=0.125)
    assert moved is x_adv
    expected = torch.tensor([[0.575, 0.4], [0.5, 0.8125], [0.5, 0.5]])
    assert torch.allclose(moved, expected, rtol=1e-6, atol=0)


def test_apgd_by_hand(backend):
    x = torch.full((1, 2), 0.5)
    x_adv, x_prev = torch.tensor([[0.75, 0.5]]), torch.tensor([[0.5, 0.625]])
    grad = torch.tensor([[1.0, -2.0]])
    options = {"eps": 0.25, "step_size": 0.5, "momentum": 0.75}
    # u = (0.75, 0.25); x_adv + 0.75 (u - x_adv) + 0.25 (x_adv - x_prev) = (0.8125, 0.28125)
    moved = ops.apgd_linf_step_(x_adv, x_prev, grad, x, **options)
    assert moved is x_prev and moved.tolist() == [[0.75, 0.28125]]
    assert x_adv.tolist() == [[0.75, 0.5]]
    x_prev = torch.tensor([[0.5, 0.625]])
    grad = torch.tensor([[0.0, -2.0]])
    # x_adv + s g/|g| - x = (0.25, -0.5), of length 0.559; u and then the point end on the sphere.
    moved = ops.apgd_l2_step_(x_adv, x_prev, grad, x, **options)
    u = 0.5 + torch.tensor([0.25, -0.5]) * 0.25 / 0.3125**0.5
    point = torch.tensor([0.25 + 0.75 * (u[0] - 0.75) + 0.0625, 0.75 * (u[1] - 0.5) - 0.03125])
    expected = 0.5 + point * 0.25 / point.norm()
    assert moved is x_prev and torch.allclose(moved[0], expected, rtol=2e-6)


def test_the_first_step_does_not_look_at_x_prev(backend):
    for name in ("apgd_linf_step_", "apgd_l2_step_"):
        op = SPHERES[name]
        _, x_adv, grad, x = batch(op, (3, 3, 5, 5), torch.float32)
        for rubbish in (math.nan, math.inf, 7.0):
            x_prev = torch.full_like(x, rubbish)
            moved = op.run(x_prev, x_adv, grad, x, eps=0.1, step_size=0.05, momentum=1.0)
            step = ops.linf_step_ if "linf" in name else ops.l2_step_
            expected = step(x_adv.clone(), grad, x, eps=0.1, step_size=0.05)
            assert torch.allclose(moved, expected, atol=3e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("eps", [1e-3, 0.1, 0.5, 3.0])
def test_agrees_with_the_textbook(backend, op, eps, dtype):
    for shape in SHAPES:
        for samples in (None, shape[0]):
            options, tensors = amounts(op, eps, samples), batch(op, shape, dtype)
            expected = oracles.SPHERES[op.name](*tensors, **options)
            moved = op.run(*tensors, **options).double()
            x = tensors[-1]
            worst = (moved - expected).abs().max().item()
            # In half types a sample near the sphere is rounded toward x, and only then.
            assert worst <= TEXTBOOK[dtype], (shape, samples)
            assert (distance(op, moved, x) <= radius(options["eps"], x)).all()
            assert ((moved >= 0) & (moved <= 1)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["l2_project_", "l2_step_"])
def test_a_sample_inside_stays_without_a_gradient(backend, name, dtype):
    op = SPHERES[name]
    tensors = dict(zip(op.tensors, batch(op, (4, 3, 9, 7), dtype), strict=True))
    if "grad" in tensors:
        tensors["grad"].zero_()
        tensors["grad"][1] = math.nan
        tensors["grad"][2, 0, 0, 0] = math.inf
    length = distance(op, tensors["x_adv"], tensors["x"]).max().item()
    kept = tensors["x_adv"].clone()
    options = amounts(op, 1.0001 * length)
    assert torch.equal(op.run(*tensors.values(), **options), kept)


@pytest.mark.parametrize("scale", [1e-43, 1e-30, 1e-6, 1e6, 1e37])
def test_a_gradient_of_any_magnitude_gives_a_full_step(backend, scale):
    x = torch.full((2, 30), 0.5)
    grad = torch.randn(2, 30, generator=torch.Generator().manual_seed(0)).mul(scale)
    grad = grad.clamp(-3e38, 3e38)
    moved = ops.l2_step_(x.clone(), grad, x, eps=1.0, step_size=0.25)
    wide = grad.double()
    expected = x + 0.25 * wide / wide.norm(dim=1, keepdim=True)
    assert torch.allclose(moved.double(), expected, atol=2e-7)


def test_cancellation_costs_length_and_not_the_ball(backend):
    """x_adv far outside, and a step that leads back: <d,d>, <d,g> and <g,g> cancel."""
    x = torch.rand(6, 1000, generator=torch.Generator().manual_seed(0))
    away = torch.randn(6, 1000, generator=torch.Generator().manual_seed(1))
    length = 10.0 ** torch.arange(6).reshape(6, 1)
    x_adv = x + away * length
    d = (x_adv - x).double()
    eps, step = 0.5, d.norm(dim=1)
    moved = ops.l2_step_(x_adv, -(x_adv - x), x, eps=eps, step_size=step, bounds=(-9.0, 9.0))
    assert (distance(SPHERES["l2_step_"], moved, x) <= eps).all()
    assert (distance(SPHERES["l2_step_"], moved, x)[:2] < 1e-2).all()


def test_a_tiny_radius_counts_as_zero(backend):
    x = torch.rand(2, 9)
    for eps in (1e-40, 2.0**-101):
        assert torch.equal(ops.l2_project_(x + 0.1, x, eps=eps), x)


@st.composite
def cases(draw):
    """A call with pixels, or with numbers of any size."""
    op = SPHERES[draw(st.sampled_from(sorted(SPHERES)))]
    dtype = draw(st.sampled_from(DTYPES))
    samples, length = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    tensors = batch(op, (samples, length), dtype, draw(st.integers(0, 2**20)))
    bounds = draw(st.sampled_from([(0.0, 1.0), (-0.3, 0.7), (-2.0, 1.7)]))
    low, high = bounds
    tensors[-1] = (low + (high - low) * tensors[-1].double()).to(dtype)
    tensors[-1] = tensors[-1].clamp(*box_limits(*bounds, dtype))
    spread = draw(st.sampled_from([0.0, 1e-4, 0.1, 3.0, 1e4]))
    for index, name in enumerate(op.tensors[:-1]):
        if name == "grad":
            tensors[index] = tensors[index] * draw(st.sampled_from([1e-7, 1.0, 1e4]))
        else:
            noise = torch.randn(tensors[-1].shape, generator=torch.Generator().manual_seed(index))
            tensors[index] = (tensors[-1].double() + spread * noise).clamp(-6e4, 6e4).to(dtype)
    options = amounts(op, draw(st.sampled_from([1e-30, 1e-6, 0.01, 0.5, 4.0]) | st.floats(0, 9)))
    if "step_size" in options:
        options["step_size"] = draw(st.sampled_from([0.0, 1e-30, 1e-3, 0.3, 2.0, 1e6]))
    if "momentum" in options:
        options["momentum"] = draw(st.sampled_from([0.0, 0.75, 1.0]))
    return op, tensors, options | {"bounds": bounds}


@given(case=cases())
@settings(max_examples=100, deadline=None)
def test_results_lie_in_ball_and_box_in_fp64(case):
    op, tensors, options = case
    x = tensors[-1]
    for name in native.BACKENDS:
        with ops.use_backend(name):
            moved = op.run(*[value.clone() for value in tensors], **options)
        assert (distance(op, moved, x) <= radius(options["eps"], x)).all()
        low, high = torch.tensor(options["bounds"], dtype=moved.dtype)  # as torch.clamp takes them
        assert ((moved >= low) & (moved <= high)).all()


@given(seed=st.integers(0, 2**20), eps=st.floats(0.01, 3.0), dtype=st.sampled_from(DTYPES))
@settings(max_examples=20, deadline=None)
def test_a_second_projection_changes_nothing(seed, eps, dtype):
    x_adv, x = batch(SPHERES["l2_project_"], (3, 40), dtype, seed, spread=0.4)
    once = ops.l2_project_(x_adv, x, eps=eps)
    assert torch.equal(ops.l2_project_(once.clone(), x, eps=eps), once)

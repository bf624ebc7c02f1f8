"""L2 and APGD steps: hand-worked numbers, the textbook in fp64, special values."""

import math

import pytest
import tolerances
import torch
from l2_cases import DTYPES, OPS, amounts, batch, distance, radius

from roli_fast import ops
from roli_fast.ops import native

SHAPES = [(3, 5), (2, 3, 7, 11), (4, 1, 1, 1), (1, 700), (5, 3, 8, 8)]


@pytest.fixture(params=native.BACKENDS)
def backend(request):
    """Every test here runs on both implementations (twice on the reference without `_C`)."""
    with ops.use_backend(request.param):
        yield request.param


@pytest.fixture(params=OPS)
def op(request):
    return OPS[request.param]


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
        op = OPS[name]
        _, x_adv, grad, x = batch(op, (3, 3, 5, 5), torch.float32)
        for rubbish in (math.nan, math.inf, 7.0):
            x_prev = torch.full_like(x, rubbish)
            moved = op.run(x_prev, x_adv, grad, x, eps=0.1, step_size=0.05, momentum=1.0)
            step = ops.linf_step_ if "linf" in name else ops.l2_step_
            expected = step(x_adv.clone(), grad, x, eps=0.1, step_size=0.05)
            assert torch.allclose(moved, expected, atol=3e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_the_textbook(backend, op, shape, dtype):
    for eps in (1e-3, 0.1, 0.5, 3.0):
        for samples in (None, shape[0]):
            options, tensors = amounts(op, eps, samples), batch(op, shape, dtype)
            expected = op.textbook(*tensors, **options)
            moved = op.run(*tensors, **options).double()
            x = tensors[-1]
            worst = (moved - expected).abs().max().item()
            # In half types a sample near the sphere is rounded toward x, and only then.
            assert worst <= tolerances.TEXTBOOK[dtype], (eps, samples)
            assert (distance(op, moved, x) <= radius(options["eps"], x)).all()
            assert ((moved >= 0) & (moved <= 1)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_eps_zero_gives_x_back(backend, op, dtype):
    tensors = batch(op, (3, 4, 5), dtype)
    x = tensors[-1]
    options = amounts(op, 0.0) | ({"step_size": 0.3} if "step_size" in op.amounts else {})
    assert torch.equal(op.run(*tensors, **options), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["l2_project_", "l2_step_"])
def test_a_sample_inside_stays_without_a_gradient(backend, name, dtype):
    op = OPS[name]
    tensors = dict(zip(op.tensors, batch(op, (4, 3, 9, 7), dtype), strict=True))
    if "grad" in tensors:
        tensors["grad"].zero_()
        tensors["grad"][1] = math.nan
        tensors["grad"][2, 0, 0, 0] = math.inf
    length = distance(op, tensors["x_adv"], tensors["x"]).max().item()
    kept = tensors["x_adv"].clone()
    options = amounts(op, 1.0001 * length)
    assert torch.equal(op.run(*tensors.values(), **options), kept)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_non_finite_entries_of_the_gradient_count_as_zero(backend, dtype):
    for name in ("l2_step_", "apgd_linf_step_", "apgd_l2_step_"):
        op = OPS[name]
        tensors = dict(zip(op.tensors, batch(op, (3, 50), dtype), strict=True))
        for value in (math.nan, math.inf, -math.inf):
            results = []
            for entry in (0.0, value):
                grad = tensors["grad"].clone()
                grad[:, ::7] = entry
                arguments = [v.clone() for v in (tensors | {"grad": grad}).values()]
                results.append(op.run(*arguments, **amounts(op, 0.4)))
            assert torch.equal(*results)


@pytest.mark.parametrize("scale", [1e-43, 1e-30, 1e-6, 1e6, 1e37])
def test_a_gradient_of_any_magnitude_gives_a_full_step(backend, scale):
    x = torch.full((2, 30), 0.5)
    grad = torch.randn(2, 30, generator=torch.Generator().manual_seed(0)).mul(scale)
    grad = grad.clamp(-3e38, 3e38)
    moved = ops.l2_step_(x.clone(), grad, x, eps=1.0, step_size=0.25)
    wide = grad.double()
    expected = x + 0.25 * wide / wide.norm(dim=1, keepdim=True)
    assert torch.allclose(moved.double(), expected, atol=2e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity_take_their_sample_and_no_other(backend, dtype):
    for name in ("l2_project_", "l2_step_", "apgd_l2_step_"):
        op = OPS[name]
        clean = op.run(*batch(op, (4, 20), dtype), **amounts(op, 0.3, 4))
        for target in ("x_adv", "x"):
            for value in (math.nan, math.inf, -math.inf):
                tensors = dict(zip(op.tensors, batch(op, (4, 20), dtype), strict=True))
                tensors[target][2, 5] = value
                moved = op.run(*tensors.values(), **amounts(op, 0.3, 4))
                assert moved[2].isnan().all()
                assert torch.equal(moved[[0, 1, 3]], clean[[0, 1, 3]])
        options = amounts(op, 0.3, 4)
        options["eps"][3] = math.nan
        moved = op.run(*batch(op, (4, 20), dtype), **options)
        assert moved[3].isnan().all() and torch.equal(moved[:3], clean[:3])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_is_written_without_a_sign(backend, op, dtype):
    tensors = [torch.full((1, 6), -0.0, dtype=dtype) for _ in op.tensors]
    moved = op.run(*tensors, **amounts(op, 0.5), bounds=(-1.0, 1.0))
    assert moved.tolist() == [[0.0] * 6] and not torch.signbit(moved).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_box_wins_where_it_does_not_meet_the_ball(backend, op, dtype):
    x = torch.tensor([[-3.0, 3.0, 0.5]], dtype=dtype)
    tensors = [torch.ones_like(x) if name == "grad" else x.clone() for name in op.tensors]
    assert op.run(*tensors, **amounts(op, 0.25), bounds=(-1, 2))[0, :2].tolist() == [-1.0, 2.0]


def test_cancellation_costs_length_and_not_the_ball(backend):
    """x_adv far outside, and a step that leads back: <d,d>, <d,g> and <g,g> cancel."""
    x = torch.rand(6, 1000, generator=torch.Generator().manual_seed(0))
    away = torch.randn(6, 1000, generator=torch.Generator().manual_seed(1))
    length = 10.0 ** torch.arange(6).reshape(6, 1)
    x_adv = x + away * length
    d = (x_adv - x).double()
    eps, step = 0.5, d.norm(dim=1)
    moved = ops.l2_step_(x_adv, -(x_adv - x), x, eps=eps, step_size=step, bounds=(-9.0, 9.0))
    assert (distance(OPS["l2_step_"], moved, x) <= eps).all()
    assert (distance(OPS["l2_step_"], moved, x)[:2] < 1e-2).all()


def test_a_tiny_radius_counts_as_zero(backend):
    x = torch.rand(2, 9)
    for eps in (1e-40, 2.0**-101):
        assert torch.equal(ops.l2_project_(x + 0.1, x, eps=eps), x)

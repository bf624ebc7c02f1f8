"""What the Linf step computes: hand-worked numbers, the exact truth, and special values."""

import oracles
import pytest
import torch
from cases import DTYPES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roli_fast import ops
from roli_fast.ops import native

EPS, STEP = 8 / 255, 2 / 255
HUGE = 4.0  # a step that reaches the limit of any ball below


def step(x_adv, grad, x, **options) -> Tensor:
    options = {"eps": EPS, "step_size": STEP} | options
    return ops.linf_step_(x_adv.clone(), grad, x, **options)


def test_hand_worked_numbers(backend):
    x = torch.tensor([[0.5, 0.5, 0.5, 0.0, 1.0, 0.25]])
    x_adv = torch.tensor([[0.5, 0.5625, 0.4375, 0.0, 1.0, 0.25]])
    grad = torch.tensor([[3.0, 1e-30, -7.0, -1.0, 2.0, 0.0]])
    moved = ops.linf_step_(x_adv, grad, x, eps=0.125, step_size=0.03125)
    assert moved is x_adv
    assert moved.tolist() == [[0.53125, 0.59375, 0.40625, 0.0, 1.0, 0.25]]
    ops.linf_step_(x_adv, grad, x, eps=0.0625, step_size=0.03125)
    assert moved.tolist() == [[0.5625, 0.5625, 0.4375, 0.0, 1.0, 0.25]]


def test_per_sample_eps_and_step_size(backend):
    x = torch.full((3, 2), 0.5)
    eps, size = torch.tensor([0.0, 0.25, 0.5]), torch.tensor([0.5, 0.125, 1.0])
    moved = step(x, torch.ones(3, 2), x, eps=eps, step_size=size)
    assert moved.tolist() == [[0.5, 0.5], [0.625, 0.625], [1.0, 1.0]]
    one_size = step(x, -torch.ones(3, 2), x, eps=eps, step_size=0.375)
    assert one_size.tolist() == [[0.5, 0.5], [0.25, 0.25], [0.125, 0.125]]
    one_eps = step(x, -torch.ones(3, 2), x, eps=0.25, step_size=size.double())
    assert one_eps.tolist() == [[0.25, 0.25], [0.375, 0.375], [0.25, 0.25]]


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_a_result_that_rounds_to_zero_has_no_sign(backend, dtype):
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    x = torch.tensor([[tiny]], dtype=torch.float64).to(dtype)
    moved = step(x, -torch.ones_like(x), x, step_size=1.25 * tiny, bounds=(-1.0, 1.0))
    assert moved.tolist() == [[0.0]] and not torch.signbit(moved).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinite_images_end_in_the_box(backend, dtype):
    inf = float("inf")
    x = torch.tensor([[inf, -inf, 0.5, 0.5]], dtype=dtype)
    x_adv = torch.tensor([[0.5, 0.5, inf, -inf]], dtype=dtype)
    moved = step(x_adv, torch.zeros_like(x), x, eps=0.25, step_size=0.0)
    assert moved.tolist() == [[1.0, 0.0, 0.75, 0.25]]


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("eps", (EPS, 4 / 255, 0.3, 1e-3, 1e-7))
def test_limits_are_tight_around_every_16_bit_number(backend, dtype, eps):
    """For each x of the dtype: pushed both ways, the result is the last number inside the ball."""
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    x = x[x.abs() <= 1000].reshape(1, -1)
    radius = torch.tensor(eps).double()
    ones = torch.ones_like(x)
    for grad in (ones, -ones):
        # Start at the far end, so that one step of any size is cut off by the limit.
        limit = step(x + 1000 * grad, grad, x, eps=eps, step_size=1.0, bounds=(-3000, 3000))
        distance = (limit.double() - x.double()).abs()
        assert (distance <= radius).all()
        beyond = _neighbour(limit, up=bool(grad[0, 0] > 0))
        assert ((beyond.double() - x.double()).abs() > radius).all()


def _neighbour(value: Tensor, *, up: bool) -> Tensor:
    """The next 16-bit number, by counting through the bit patterns in their order."""
    bits = value.view(torch.int16).to(torch.int32)
    order = torch.where(bits < 0, -(bits & 0x7FFF), bits) + (1 if up else -1)
    back = torch.where(order < 0, -order - 2**15, order)
    return back.to(torch.int16).view(value.dtype)


@pytest.mark.parametrize("eps", (EPS, 0.5 / 255, 0.1, 1 / 3))
def test_fp32_limits_hold_in_fp64_and_are_tight(backend, eps):
    x = torch.rand(2, 50_000, generator=torch.Generator().manual_seed(1)) + 2**-16
    radius = torch.tensor(eps).double()
    for sign in (1.0, -1.0):
        grad = torch.full_like(x, sign)
        limit = step(x, grad, x, eps=eps, step_size=HUGE, bounds=(-5.0, 5.0))
        assert ((limit.double() - x.double()).abs() <= radius).all()
        beyond = torch.nextafter(limit, grad * 10)
        assert ((beyond.double() - x.double()).abs() > radius).all()


@st.composite
def cases(draw):
    """A dtype and finite numbers of it, wild ones included."""
    dtype = draw(st.sampled_from(DTYPES))
    largest = 1e4 if dtype is torch.float16 else 1e30
    wild = st.floats(-largest, largest)
    pixel = st.floats(0, 1) | st.sampled_from([0.0, 1.0, 0.5, 1e-8, 6e-8, 2**-14, 2**-126, 1e-40])
    n = draw(st.integers(1, 20))

    def numbers(source):
        values = draw(st.lists(source, min_size=n, max_size=n))
        return torch.tensor([values], dtype=torch.float64).to(dtype)

    source = draw(st.sampled_from([pixel, pixel | wild, wild]))
    options = {
        "eps": draw(st.sampled_from([EPS, 0.0, 0.3, 1e-6, 1e-40]) | st.floats(0, 10)),
        "step_size": draw(st.sampled_from([STEP, 0.0, 1e-40]) | st.floats(0, 10)),
        "bounds": draw(st.sampled_from([(0.0, 1.0), (-0.3, 0.7), (-1e4, 1e4)])),
    }
    return numbers(source), numbers(st.floats(-3, 3)), numbers(source), options


@given(case=cases())
@settings(max_examples=100, deadline=None)
def test_equals_exact_arithmetic(case):
    x_adv, grad, x, options = case
    expected = [
        oracles.linf_step(*values, **options, dtype=x.dtype)
        for values in zip(x_adv[0].tolist(), grad[0].tolist(), x[0].tolist(), strict=True)
    ]
    for name in native.BACKENDS:
        with ops.use_backend(name):
            assert step(x_adv, grad, x, **options)[0].tolist() == expected

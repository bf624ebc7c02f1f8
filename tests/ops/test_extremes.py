"""Ball and box hold exactly, in fp64, at the ends of every dtype's range."""

import pytest
import torch
from cases import DTYPES
from torch import Tensor

from roli_fast import ops
from roli_fast.errors import ArgumentError
from roli_fast.norms import NORMS
from roli_fast.threat import check_images

pytestmark = pytest.mark.usefixtures("backend")
LENGTHS = ("linf", "l2", "l1")


def moves(x: Tensor, x_adv: Tensor, grad: Tensor, eps: float, step: float, bounds: tuple) -> dict:
    """Every op that has to stay in a ball: (its name, the ball's norm) -> result."""
    options = {"eps": eps, "bounds": bounds}
    sized, mixed = options | {"step_size": step}, options | {"step_size": step, "momentum": 0.75}
    found = {}
    for norm in LENGTHS:
        start = getattr(ops, f"{norm}_random_start")
        found["start", norm] = start(x, generator=torch.Generator().manual_seed(0), **options)
        if norm != "linf":
            found["project", norm] = getattr(ops, f"{norm}_project_")(x_adv.clone(), x, **options)
        sparse = {"density": 0.5} if norm == "l1" else {}
        run = getattr(ops, f"{norm}_step_")
        found["step", norm] = run(x_adv.clone(), grad, x, **sized, **sparse)
        if norm != "l1":
            run = getattr(ops, f"apgd_{norm}_step_")
            found["apgd", norm] = run(x_adv, x_adv.flip(0).clone(), grad, x, **mixed)
    return found


def check(found: dict, x: Tensor, eps: float, bounds: tuple) -> None:
    radius = torch.tensor(eps, dtype=torch.float64 if x.dtype is torch.float64 else torch.float32)
    for (name, norm), moved in found.items():
        length = NORMS[norm].distance(moved, x)
        assert (length <= radius.double() * (1 + 1e-14)).all(), (name, norm)
        assert ((moved >= bounds[0]) & (moved <= bounds[1])).all(), (name, norm)


def drawn(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("eps", [0.0, 1e-320, 1e-45, 1e-42, 1e-38, 1e-33, 1e-20])
def test_a_tiny_ball_is_not_left(dtype, eps):
    """At 0, where the spacing of numbers is finer than such an eps."""
    x = torch.zeros(2, 1000, dtype=dtype)
    x_adv = (eps * drawn(2, 1000).abs().clamp(max=1)).to(dtype)
    check(moves(x, x_adv, drawn(2, 1000).to(dtype), eps, eps / 4, (0.0, 1.0)), x, eps, (0.0, 1.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("eps", "step"), [(0.5, 1e30), (1e30, 1e29), (1e30, 1e-30), (1e-3, 1e30)])
def test_huge_numbers_stay_numbers(dtype, eps, step):
    bounds = (-1e30, 1e30) if dtype != torch.float16 else (-6e4, 6e4)
    for scale in (1e-40, 1.0, 1e30):
        x, x_adv, grad = drawn(3, 4, 50)
        x, x_adv = ((value * bounds[1]).to(dtype).clamp(*bounds) for value in (x, x_adv))
        check(moves(x, x_adv, (grad * scale).to(dtype), eps, step, bounds), x, eps, bounds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_iterates_far_beyond_the_box_end_in_the_ball(dtype):
    """Near 3e38 the factor of the way back was a subnormal number, and differences infinite."""
    x = drawn(20, 6).abs().clamp(max=1).to(dtype)
    x_adv = (drawn(20, 6, seed=2).sign() * 3e38).to(dtype)
    grad = drawn(20, 6, seed=3).to(dtype)
    check(moves(x, x_adv, grad, 0.5, 0.1, (0.0, 1.0)), x, 0.5, (0.0, 1.0))


def test_a_step_that_fp32_does_not_hold_is_as_long_as_may_be():
    """A gradient of subnormal numbers made the factor of a long step infinite, and 0 * inf NaN."""
    x = torch.linspace(0, 0.9, 10).view(2, 5)  # no end near 0, where the difference cancels
    grad = torch.tensor([[0.0, 1e-42, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, -1e-42, 0.0]])
    step = torch.full((2,), 1e38)
    moved = ops.l2_step_(x.clone(), grad, x, eps=0.25, step_size=step, bounds=(-9, 9))
    torch.testing.assert_close(moved, x + 0.25 * grad.sign(), rtol=1e-5, atol=0)


def test_numbers_at_which_distances_overflow_are_refused():
    for bounds in ((-3e38, 3e38), (0.0, 1e39)):
        with pytest.raises(ArgumentError, match=r"^`bounds`: .* of at most 2\*\*100"):
            ops.l2_random_start(torch.rand(2, 5), eps=0.1, bounds=bounds)
    with pytest.raises(ArgumentError, match=r"^`eps`: expected a number >= 0"):
        ops.linf_random_start(torch.rand(2, 5), eps=1e38)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bounds", [(0.2, 0.7), (0.1, 0.9), (-1 / 3, 1 / 3)])
def test_an_image_that_is_accepted_lies_in_the_box(dtype, bounds):
    """One at the bounds' own numbers of the dtype: it was moved out of the ball, into the box."""
    x = (9 * drawn(2, 500)).to(dtype).clamp(*bounds)
    check_images(x, bounds)
    grad = drawn(2, 500, seed=2).to(dtype)
    check(moves(x, x.clone(), grad, 1e-3, 1e-3, bounds), x, 1e-3, bounds)
    for norm in LENGTHS:
        step = getattr(ops, f"fab_{norm}_step_")
        moved = step(x.clone(), grad, x, value=1.0, alpha_max=0.1, eta=1.05, bounds=bounds)
        check_images(moved, bounds)

"""FAB's steps: by hand, the reference in fp64, special values, and scipy's solvers."""

import math

import numpy as np
import pytest
import torch
from cases import DTYPES
from scipy import optimize
from torch import Tensor

from roli_fast import ops

NORMS = {"linf": math.inf, "l2": 2, "l1": 1}
INF = math.inf


@pytest.fixture(params=NORMS)
def norm(request) -> str:
    return request.param


def step(norm: str, x_adv, grad, x=None, **options) -> Tensor:
    """The op on copies; with nothing else said, the point on the plane itself."""
    x_adv, grad = torch.as_tensor(x_adv), torch.as_tensor(grad)
    x = x_adv if x is None else torch.as_tensor(x)
    options = {"value": 0.0, "alpha_max": 0.0, "eta": 1.0} | options
    return getattr(ops, f"fab_{norm}_step_")(x_adv.clone(), grad, x.clone(), **options)


def exact(norm: str, x_adv: Tensor, grad: Tensor, x: Tensor, **options) -> Tensor:
    """The reference in fp64, which scipy's solvers confirm below."""
    wide = (value.double() for value in (x_adv, grad, x))
    return getattr(ops, f"fab_{norm}_step_").reference(*wide, **options)


def problem(samples: int = 6, length: int = 300, dtype=torch.float32, seed: int = 0):
    """Points near x, some entries of both at walls, normals of many sizes with zeros and ties."""
    source = torch.Generator().manual_seed(seed)
    x = torch.rand(samples, length, generator=source)
    x[:, ::7], x[:, 1::11] = 0.0, 1.0
    x_adv = (x + 0.1 * torch.randn(x.shape, generator=source)).clamp(0, 1)
    grad = 0.1 * torch.randn(x.shape, generator=source) ** 3
    grad[:, ::13] = 0.0
    grad[:, 1::17] = grad[:, 2:3]
    value = torch.linspace(-2.0, 2.5, samples) ** 3
    return [tensor.to(dtype) for tensor in (x_adv, grad, x)], value


# The value is .3 at the point (.5, .5), .6 at x = (.5, .2); results: alpha .25, eta 1 and 1.05.
FAR = [
    ("linf", [0.375, 0.55], [0.36875, 0.55625]),  # ends (.4, .6) and (.3, .4)
    ("l2", [0.35, 0.5], [0.3425, 0.50375]),  # (.38, .56) and (.26, .32)
    ("l1", [0.3125, 0.425], [0.303125, 0.425]),  # (.35, .5) and (.2, .2)
]


@pytest.mark.parametrize(("norm", "expected", "beyond"), FAR)
def test_far_from_the_box_by_hand(backend, norm, expected, beyond):
    x_adv, x = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.5, 0.2]])
    grad, run = torch.tensor([[2.0, -1.0]]), getattr(ops, f"fab_{norm}_step_")
    moved = run(x_adv, grad, x, value=0.3, alpha_max=0.25, eta=1.0)
    assert moved is x_adv and moved[0].tolist() == pytest.approx(expected, abs=1e-7)
    options = {"value": torch.tensor([0.3]), "alpha_max": 0.25, "eta": 1.05}
    assert step(norm, [[0.5, 0.5]], grad, x, **options)[0].tolist() == pytest.approx(beyond)


@pytest.mark.parametrize(("norm", "end"), [("linf", 0.3), ("l2", 0.26), ("l1", 0.2)])
def test_alpha_is_the_share_of_the_lengths_if_that_is_less(backend, norm, end):
    """x is twice as far from the plane in every norm: a third of its end."""
    own = step(norm, [[0.5, 0.5]], [[2.0, -1.0]], value=0.3)[0, 0].item()
    both = step(norm, [[0.5, 0.5]], [[2.0, -1.0]], [[0.5, 0.2]], value=0.3, alpha_max=1.0)
    assert both[0, 0].item() == pytest.approx(2 / 3 * own + 1 / 3 * end)


def test_at_a_wall_by_hand(backend, norm):
    """The first entry has .1 of room, worth .2; the other has to give the remaining .1."""
    moved = step(norm, [[0.1, 0.5]], [[2.0, -1.0]], value=0.3)
    assert moved[0].tolist() == pytest.approx([0.0, 0.6], abs=1e-7)
    moved = step(norm, [[0.1, 0.5]], [[2.0, -1.0]], value=0.3, eta=1.5)
    assert moved[0].tolist() == pytest.approx([0.0, 0.65], abs=1e-7)


def test_a_plane_beyond_the_box_gives_the_nearest_corner(backend, norm):
    for value in (99.0, 1e30, INF):
        value = torch.tensor([value])
        assert step(norm, [[0.25, 0.5, 0.5]], [[2.0, -1.0, 0.0]], value=value).tolist() == [
            [0.0, 1.0, 0.5]
        ]
        moved = step(norm, [[0.0, 4.0]], [[2.0, -1.0]], value=-value, bounds=(-1.0, 5.0))
        assert moved.tolist() == [[5.0, -1.0]]


def test_nothing_moves_where_there_is_nothing_to_gain(backend, norm):
    assert step(norm, [[0.5, 0.25]], [[2.0, -1.0]], value=0.0).tolist() == [[0.5, 0.25]]
    assert step(norm, [[0.5, 0.25]], [[0.0, -0.0]], value=0.3).tolist() == [[0.5, 0.25]]
    assert step(norm, [[0.0, 1.0]], [[2.0, -1.0]], value=0.3).tolist() == [[0.0, 1.0]]
    # Neither end goes anywhere: both lengths count as 1e-8, and x gets half where it may.
    moved = step(norm, [[0.5, 0.25]], [[0.0, 0.0]], [[0.25, 0.75]], value=0.3, alpha_max=1.0)
    assert moved.tolist() == [[0.375, 0.5]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_the_formula(backend, norm, dtype):
    for seed, length in enumerate((1, 5, 300, 1111)):
        tensors, value = problem(length=length, dtype=dtype, seed=seed)
        for options in (
            {"value": value, "alpha_max": 0.1, "eta": 1.05},
            {"value": 0.3, "alpha_max": torch.linspace(0, 1, 6), "eta": 1.0},
            {"value": -value / 8, "alpha_max": 0.0, "eta": 1.0, "bounds": (-0.5, 2.0)},
        ):
            expected = exact(norm, *tensors, **options)
            worst = (step(norm, *tensors, **options).double() - expected).abs().max().item()
            # rounded once, within [-.5, 2]; fp32's arithmetic before that costs some 1e-7
            allowed = 1e-12 if dtype == torch.float64 else torch.finfo(dtype).eps + 5e-7
            assert worst <= allowed, (seed, length, worst)


@pytest.mark.parametrize("scale", [1e-43, 1e-30, 1e-6, 1e6, 1e37])
def test_a_normal_of_any_magnitude_serves(backend, norm, scale):
    (x_adv, grad, x), value = problem()
    grad = (grad.clamp(-1, 1) * scale).clamp(-3e38, 3e38)
    value = 0.3 * grad.double().abs().sum(1)
    if not (value.float().isfinite() & (value.float() > 0)).all():
        return
    expected = exact(norm, x_adv, grad, x, value=value.float(), alpha_max=0.1, eta=1.05)
    moved = step(norm, x_adv, grad, x, value=value.float(), alpha_max=0.1, eta=1.05)
    assert (moved.double() - expected).abs().max() <= 1e-6


def test_equal_normals_share_what_is_left_in_l1(backend):
    moved = step("l1", [[0.5, 0.5, 0.5, 0.1]], [[1.0, 2.0, -1.0, 1.0]], value=1.55)
    # the heaviest to its wall gives 1.0; the rooms of the others are .5, .5 and .1: half of each
    assert moved[0].tolist() == pytest.approx([0.25, 0.0, 0.75, 0.05], abs=1e-7)


def way_of(norm: str, points: Tensor, weight: Tensor, gap: Tensor) -> Tensor:
    """d for points (2, B, D), planes (B, D) and gaps (2, B), one set of points after the other."""
    step = getattr(ops, f"fab_{norm}_step_")
    options = {"alpha_max": 0.0, "eta": 1.0}
    ends = [
        step(p.clone(), weight, p.clone(), value=g, **options)
        for p, g in zip(points, gap, strict=True)
    ]
    return torch.stack(ends) - points


def closed(seed: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points, some at walls, normals with zeros and ties, and gaps that can be closed or not."""
    source = torch.Generator().manual_seed(seed)
    points = torch.rand(2, 1, size, generator=source).double()
    points[0, 0, ::3], points[1, 0, 1::3] = 0.0, 1.0
    weight = torch.randn(1, size, generator=source).double()
    weight[0, size // 2] = 0.0
    weight[0, -1] = -weight[0, 0]
    reach = torch.where(weight > 0, points, 1 - points).mul(weight.abs()).sum(-1)
    return points, weight, reach * torch.rand(2, 1, generator=source).double() * 1.1


def shortest(norm: str, point: np.ndarray, weight: np.ndarray, gap: float) -> float | None:
    """The least length by a general solver; None where the plane is out of reach."""
    size = len(point)
    if norm == "l2":
        found = optimize.minimize(
            lambda d: d @ d,
            np.zeros(size),
            jac=lambda d: 2 * d,
            bounds=np.stack([-point, 1 - point], 1),
            constraints={"type": "eq", "fun": lambda d: gap + weight @ d, "jac": lambda d: weight},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        return float(np.sqrt(found.fun)) if found.success else None
    # d = up - down; linf: one more variable above all, l1: their sum
    box = [(0, 1 - p) for p in point] + [(0, p) for p in point]
    plane = np.concatenate([weight, -weight])
    if norm == "l1":
        found = optimize.linprog(np.ones(2 * size), A_eq=plane[None], b_eq=[-gap], bounds=box)
    else:
        below = np.concatenate([np.eye(2 * size), -np.ones((2 * size, 1))], 1)
        found = optimize.linprog(
            [0] * 2 * size + [1],
            A_ub=below,
            b_ub=np.zeros(2 * size),
            A_eq=np.append(plane, 0)[None],
            b_eq=[-gap],
            bounds=[*box, (0, None)],
        )
    return float(found.fun) if found.success else None


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [2, 7, 12])
@pytest.mark.parametrize("seed", range(2))
def test_no_solver_finds_a_shorter_way(norm: str, size: int, seed: int) -> None:
    points, weight, gap = closed(seed, size)
    d = way_of(norm, points, weight, gap)
    length = torch.linalg.vector_norm(d, NORMS[norm], dim=2)
    for which in range(2):
        truth = shortest(norm, points[which, 0].numpy(), weight[0].numpy(), gap[which].item())
        left = (gap[which] + (weight * d[which]).sum()).item()
        if truth is None:  # all the way into the corner, and still on this side
            corner = torch.where(weight[0] > 0, -points[which, 0], 1 - points[which, 0])
            assert torch.allclose(d[which, 0], torch.where(weight[0] != 0, corner, 0.0))
            assert left > 0
        else:
            assert left == pytest.approx(0, abs=1e-12)
            assert length[which].item() == pytest.approx(truth, rel=1e-6, abs=1e-9)

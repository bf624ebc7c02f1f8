"""The way to a hyperplane inside the box, against hand-worked numbers and scipy's solvers."""

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor

from roli_fast.attacks.hyperplane import DUAL, ORDERS, check_norm, step_to_plane
from roli_fast.errors import ArgumentError

NORMS = tuple(ORDERS)


def step(norm: str, point, weight, gap: float, bounds=(0.0, 1.0)) -> list[float]:
    tensors = (torch.tensor([[point]]), torch.tensor([weight]), torch.tensor([[gap]]))
    points, normal, value = (tensor.double() for tensor in tensors)
    return step_to_plane(points, normal, value, norm=norm, bounds=bounds)[0, 0].tolist()


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        ("linf", [-0.1, 0.1, 0.0]),  # both move equally: 2 * .1 + 1 * .1 = .3
        ("l2", [-0.12, 0.06, 0.0]),  # along the normal: .3 * (2, -1) / 5
        ("l1", [-0.15, 0.0, 0.0]),  # the heavier entry alone: 2 * .15 = .3
    ],
)
def test_far_from_the_box_by_hand(norm: str, expected: list[float]) -> None:
    assert step(norm, [0.5, 0.5, 0.5], [2.0, -1.0, 0.0], 0.3) == pytest.approx(expected)
    flipped = step(norm, [0.5, 0.5, 0.5], [2.0, -1.0, 0.0], -0.3)
    assert flipped == pytest.approx([-value for value in expected])


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        # the first entry has .1 of room, worth .2; the other has to give the remaining .1
        ("linf", [-0.1, 0.1]),
        ("l2", [-0.1, 0.1]),
        ("l1", [-0.1, 0.1]),
    ],
)
def test_at_a_wall_by_hand(norm: str, expected: list[float]) -> None:
    assert step(norm, [0.1, 0.5], [2.0, -1.0], 0.3) == pytest.approx(expected)


@pytest.mark.parametrize("norm", NORMS)
def test_a_plane_beyond_the_box_gives_the_nearest_corner(norm: str) -> None:
    assert step(norm, [0.25, 0.5, 0.5], [2.0, -1.0, 0.0], 9.0) == [-0.25, 0.5, 0.0]
    assert step(norm, [0.0, 4.0, 1.0], [2.0, -1.0, 0.0], -99.0, (-1.0, 5.0)) == [5.0, -5.0, 0.0]


@pytest.mark.parametrize("norm", NORMS)
def test_nothing_moves_where_there_is_nothing_to_gain(norm: str) -> None:
    assert step(norm, [0.5, 0.5], [2.0, -1.0], 0.0) == [0.0, 0.0]
    assert step(norm, [0.5, 0.5], [0.0, 0.0], 0.3) == [0.0, 0.0]
    assert step(norm, [0.0, 1.0], [2.0, -1.0], 0.3) == [0.0, 0.0]


def problem(seed: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
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
@pytest.mark.parametrize("seed", range(4))
def test_no_solver_finds_a_shorter_way(norm: str, size: int, seed: int) -> None:
    points, weight, gap = problem(seed, size)
    d = step_to_plane(points, weight, gap, norm=norm, bounds=(0.0, 1.0))
    length = torch.linalg.vector_norm(d, ORDERS[norm], dim=2)
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


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_problems_are_solved_inside_the_box(norm: str, dtype: torch.dtype) -> None:
    source = torch.Generator().manual_seed(0)
    points = torch.rand(2, 5, 3000, generator=source).to(dtype)
    weight = torch.randn(5, 3000, generator=source).to(dtype) ** 3
    reach = torch.where(weight > 0, points, 1 - points).mul(weight.abs()).sum(-1)
    gap = reach * torch.tensor([0.001, 0.1, 0.5, 0.9, 0.999], dtype=dtype)
    d = step_to_plane(points, weight, gap, norm=norm, bounds=(0.0, 1.0))
    slack = 4 * torch.finfo(dtype).eps
    assert (points + d).min() >= -slack and (points + d).max() <= 1 + slack
    assert torch.allclose((weight * d).sum(-1), -gap, rtol=2000 * torch.finfo(dtype).eps)
    plain = gap / torch.linalg.vector_norm(weight, DUAL[norm], dim=1)
    assert (torch.linalg.vector_norm(d, ORDERS[norm], dim=2) >= plain * (1 - 1e-4)).all()


def test_a_norm_without_a_projection_is_refused() -> None:
    with pytest.raises(ArgumentError, match="`norm`: expected one of: linf, l2, l1, got 'l7'"):
        check_norm("l7")

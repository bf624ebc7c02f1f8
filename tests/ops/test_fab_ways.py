"""Where FAB's steps meet the plane inside the box, against scipy's solvers.

With alpha_max 0 and eta 1 a step is the way of the point alone.
"""

import numpy as np
import pytest
import torch
from fab_exact import ORDERS
from scipy import optimize
from torch import Tensor

from roli_fast import ops

NORMS = tuple(ORDERS)
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}


def way(norm: str, points: Tensor, weight: Tensor, gap: Tensor) -> Tensor:
    """d for points (2, B, D), planes (B, D) and gaps (2, B), one set of points after the other."""
    step = getattr(ops, f"fab_{norm}_step_")
    options = {"alpha_max": 0.0, "eta": 1.0}
    ends = [
        step(p.clone(), weight, p.clone(), value=g, **options)
        for p, g in zip(points, gap, strict=True)
    ]
    return torch.stack(ends) - points


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
    d = way(norm, points, weight, gap)
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
    d = way(norm, points, weight, gap)
    slack = 4 * torch.finfo(dtype).eps
    assert (points + d).min() >= -slack and (points + d).max() <= 1 + slack
    assert torch.allclose((weight * d).sum(-1), -gap, rtol=2000 * torch.finfo(dtype).eps)
    plain = gap / torch.linalg.vector_norm(weight, DUAL[norm], dim=1)
    assert (torch.linalg.vector_norm(d, ORDERS[norm], dim=2) >= plain * (1 - 1e-4)).all()

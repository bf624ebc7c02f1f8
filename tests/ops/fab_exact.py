"""FAB's step in fp64, sample by sample and by sorting: equations 4 to 8 of arXiv:1907.02044."""

import numpy as np
import torch
from torch import Tensor

ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}


def way(norm: str, point: np.ndarray, normal: np.ndarray, gap: float, box) -> np.ndarray:
    """The shortest d with gap + normal . d = 0 inside the box, or the way to the nearest corner."""
    direction = -np.sign(gap if gap else 1.0) * np.sign(normal)
    room = np.where(direction > 0, box[1] - point, point - box[0]).clip(0)
    size, need = np.abs(normal), abs(gap)
    moving = np.flatnonzero(size * room)
    if need >= (size * room).sum():
        return direction * room
    length = np.zeros_like(point)
    if norm == "l1":
        for largest in np.unique(size[moving])[::-1]:
            tied = moving[size[moving] == largest]  # these share what is left
            share = min(1.0, need / (largest * room[tied].sum()))
            length[tied] = share * room[tied]
            need -= largest * length[tied].sum()
        return direction * length
    slope = np.where(size > 0, 1.0 if norm == "linf" else size, 0.0)
    order = moving[np.argsort(room[moving] / slope[moving])]  # the level at which each is full
    for k, i in enumerate(order):
        rest = order[k:]
        level = need / (size[rest] * slope[rest]).sum()
        if level * slope[i] <= room[i]:
            length[rest] = level * slope[rest]
            break
        length[i] = room[i]
        need -= size[i] * room[i]
    return direction * length


def step(norm: str, x_adv: Tensor, grad: Tensor, x: Tensor, **options) -> Tensor:
    """`ops.fab_<norm>_step_` for finite numbers, in fp64."""
    box = options.get("bounds", (0.0, 1.0))
    amounts = (
        torch.as_tensor(options[name], dtype=torch.float64).expand(len(x)).tolist()
        for name in ("value", "alpha_max", "eta")
    )
    results = []
    for a, g, b, value, most, eta in zip(x_adv, grad, x, *amounts, strict=True):
        point, normal, origin = (v.double().flatten().numpy() for v in (a, g, b))
        here = way(norm, point, normal, value, box)
        there = way(norm, origin, normal, value + normal @ (origin - point), box)
        near, far = (max(np.linalg.norm(d, ORDERS[norm]), 1e-8) for d in (here, there))
        alpha = min(most, near / (near + far))
        mixed = (point + eta * here) * (1 - alpha) + (origin + eta * there) * alpha
        results.append(torch.from_numpy(mixed.clip(*box)).view(a.shape))
    return torch.stack(results)

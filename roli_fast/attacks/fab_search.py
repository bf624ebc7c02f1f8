"""One run of FAB: from a start, along linearised decision boundaries, to a close adversarial."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from roli_fast import ops
from roli_fast.attacks.hyperplane import DUAL
from roli_fast.attacks.objective import is_right
from roli_fast.attacks.selection import take
from roli_fast.engine import InputGradient, KeptForward
from roli_fast.losses import at_least_float32, margin
from roli_fast.norms import NORMS
from roli_fast.ops.rounding import box_limits

STEPS = {"linf": ops.fab_linf_step_, "l2": ops.fab_l2_step_, "l1": ops.fab_l1_step_}
"""Norm -> the fused step between the planes' ends."""


@dataclass(frozen=True)
class Difference:
    """The loss z_other - z_y, whose zeros are the boundary to that class."""

    other: Tensor

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        pair = at_least_float32(logits).gather(1, torch.stack([self.other, y], dim=1))
        return pair[:, 0] - pair[:, 1]

    def rows(self, part: slice) -> "Difference":
        """That of these samples alone."""
        return take(self, part)


class Planes(Protocol):
    """Which boundary of each sample is linearised."""

    @property
    def backwards(self) -> int:
        """What one call costs."""
        ...

    def __call__(self, kept: KeptForward, y: Tensor) -> tuple[Tensor, Tensor]:
        """Normals, like x, and the values of the linear functions (B,)."""
        ...


@dataclass(frozen=True)
class TargetPlane:
    """The boundary to one class a sample, (B,): FAB-T. One backward."""

    target: Tensor
    backwards: int = 1

    def __call__(self, kept: KeptForward, y: Tensor) -> tuple[Tensor, Tensor]:
        return kept.gradient(Difference(self.target))


@dataclass(frozen=True)
class NearestPlane:
    """The nearest of the boundaries to all other classes: FAB. `backwards` is C - 1.

    One boundary after another is compared with the nearest so far, so that memory holds two
    gradients and not one for each class.
    """

    norm: str
    backwards: int

    def __call__(self, kept: KeptForward, y: Tensor) -> tuple[Tensor, Tensor]:
        nearest = normal = value = None
        for rank in range(self.backwards):
            last = rank == self.backwards - 1
            other = rank + (rank >= y).long()
            grad, gap = kept.gradient(Difference(other), last=last)
            steepness = torch.linalg.vector_norm(
                grad.flatten(1), DUAL[self.norm], dim=1, dtype=gap.dtype
            )
            away = gap.abs() / (steepness + 1e-12)
            if nearest is None or normal is None or value is None:
                nearest, normal, value = away, grad, gap
                continue
            closer = away < nearest
            nearest = torch.where(closer, away, nearest)
            normal = torch.where(rows(closer, grad), grad, normal)
            value = torch.where(closer, gap, value)
        assert normal is not None and value is not None
        return normal, value


@dataclass(frozen=True)
class Samples:
    """What one run works on; the batch in front of every tensor.

    Args:
        x: images, all classified right.
        y: their labels (B,).
        point: where each search stands.
        planes: which boundaries it goes to.
        clean_margin: margin of `x` (B,), below 0.
        limit: radii (B,) in fp64 within which an adversarial image counts.
    """

    x: Tensor
    y: Tensor
    point: Tensor
    planes: Planes
    clean_margin: Tensor
    limit: Tensor


@dataclass
class Closest:
    """The closest adversarial images so far, (B, ...); distance inf where there is none.

    `update` writes into these tensors, so that it serves views of some rows too.
    """

    image: Tensor
    distance: Tensor
    margin: Tensor

    def update(self, image: Tensor, distance: Tensor, margin: Tensor, fooled: Tensor) -> None:
        closer = fooled & (distance < self.distance)
        torch.where(rows(closer, image), image, self.image, out=self.image)
        torch.where(closer, distance, self.distance, out=self.distance)
        torch.where(closer, margin, self.margin, out=self.margin)

    def put(self, index: Tensor, part: "Closest") -> None:
        self.image = self.image.index_copy(0, index, part.image)
        self.distance = self.distance.index_copy(0, index, part.distance)
        self.margin = self.margin.index_copy(0, index, part.margin)


@dataclass(frozen=True)
class Walk:
    """The constants of a run; see `FAB`."""

    norm: str
    bounds: tuple[float, float]
    steps: int
    alpha_max: float
    eta: float
    beta: float
    final_search: int
    minimal: bool

    def run(self, engine: InputGradient, samples: Samples) -> Closest:
        """The closest adversarial image of each sample."""
        count, device = len(samples.y), samples.x.device
        infinite = torch.full((count,), torch.inf, dtype=torch.float64, device=device)
        total = Closest(samples.x.clone(), infinite, samples.clean_margin.clone())
        here, closest = torch.arange(count, device=device), total
        normal, value = _planes(engine, samples)
        for step in range(self.steps):
            samples = replace(samples, point=self._moved(engine, samples, normal, value))
            if step == self.steps - 1:
                logits = engine.evaluate(samples.point, samples.y)[1]
                self._note(samples, logits, closest)
                break
            point, normal, value, stays = self._look(engine, samples, closest)
            samples = replace(samples, point=point)
            if not (self.minimal or bool(stays.all())):
                stay = stays.nonzero()[:, 0]
                total.put(here, closest)
                here, closest = here[stay], take(closest, stay)
                if len(here) == 0:
                    break
                samples, normal, value = take(samples, stay), normal[stay], value[stay]
        total.put(here, closest)
        return total

    def _note(self, samples: Samples, logits: Tensor, closest: Closest) -> Tensor:
        """Who is fooled (B,), written down where that is closer."""
        fooled = ~is_right(logits, samples.y)
        distance = NORMS[self.norm].distance(samples.point, samples.x)
        closest.update(samples.point, distance, margin(logits, samples.y), fooled)
        return fooled

    def _look(
        self, engine: InputGradient, samples: Samples, closest: Closest
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The next points, the planes there, and which samples stay.

        Fooled samples step back towards x. The gradients of the others come from the forward that
        shows who is fooled, as long as that saves passes; what needs another forward waits for the
        rest of the pool, so that it fills its batches. Planes of samples that leave are undefined.
        """
        point, normal = torch.empty_like(samples.point), torch.empty_like(samples.point)
        value = torch.empty_like(closest.margin)
        stays, later = torch.empty_like(samples.y, dtype=torch.bool), []
        for part in engine.batches(len(samples.y)):
            some, near = take(samples, part), take(closest, part)
            kept = engine.keep(some.point, some.y)
            fooled = self._note(some, kept.logits, near)
            back = (some.x + (some.point - some.x) * self.beta).to(point.dtype)
            point[part] = torch.where(rows(fooled, back), back, some.point)
            stays[part] = self.minimal or near.distance > some.limit
            moved = fooled & stays[part]
            if int(moved.sum()) * (1 + some.planes.backwards) >= int(stays[part].sum()):
                later.append(stays[part])
            else:
                normal[part], value[part] = some.planes(kept, some.y)
                later.append(moved)
        samples = replace(samples, point=point)
        again = torch.cat(later).nonzero()[:, 0]
        if len(again) == len(samples.y):
            return point, *_planes(engine, samples), stays
        if len(again):
            fresh = _planes(engine, take(samples, again))
            for old, new in zip((normal, value), fresh, strict=True):
                old.index_copy_(0, again, new)
        return point, normal, value, stays

    def _moved(
        self, engine: InputGradient, samples: Samples, normal: Tensor, value: Tensor
    ) -> Tensor:
        """The next points (equation 8 of the paper).

        Batch by batch: where there is no kernel, a step takes the memory of many images for one.
        """
        step, point = STEPS[self.norm], samples.point.clone()
        for part in engine.batches(len(samples.y)):
            step(
                point[part],
                normal[part],
                samples.x[part],
                value=value[part],
                alpha_max=self.alpha_max,
                eta=self.eta,
                bounds=self.bounds,
            )
        return point

    def refine(self, engine: InputGradient, samples: Samples, closest: Closest) -> None:
        """The final search: a few steps of a secant method between x and the adversarial image.

        Each lands a tenth of the way beyond the crossing of the secant, on the adversarial side.
        """
        found = torch.isfinite(closest.distance).nonzero()[:, 0]
        if len(found) == 0:
            return
        samples, part = take(samples, found), take(closest, found)
        x, end = samples.x, part.image.clone()  # `update` writes into part.image
        near, far = torch.zeros_like(part.margin), torch.ones_like(part.margin)
        near_margin, far_margin = samples.clean_margin, part.margin
        box = box_limits(*self.bounds, x.dtype)
        for _ in range(self.final_search):
            crossing = (near_margin / (near_margin - far_margin)).nan_to_num(0.5).clamp(0, 1)
            share = near + (far - near) * (0.9 * crossing + 0.1)
            probe = (x + rows(share, x) * (end - x)).to(x.dtype).clamp(*box)
            logits = engine.evaluate(probe, samples.y)[1]
            fooled, height = ~is_right(logits, samples.y), margin(logits, samples.y)
            part.update(probe, NORMS[self.norm].distance(probe, x), height, fooled)
            near, near_margin = (
                torch.where(fooled, old, new) for old, new in ((near, share), (near_margin, height))
            )
            far, far_margin = (
                torch.where(fooled, new, old) for old, new in ((far, share), (far_margin, height))
            )
        closest.put(found, part)


def _planes(engine: InputGradient, samples: Samples) -> tuple[Tensor, Tensor]:
    """The planes at the samples' points, by new forwards."""
    parts = engine.batches(len(samples.y))
    if len(parts) == 1:
        return samples.planes(engine.keep(samples.point, samples.y), samples.y)
    normal, value = torch.empty_like(samples.point), torch.empty_like(samples.clean_margin)
    for part in parts:
        some = take(samples, part)
        normal[part], value[part] = some.planes(engine.keep(some.point, some.y), some.y)
    return normal, value


def rows(values: Tensor, x: Tensor) -> Tensor:
    """(B,) shaped to broadcast over (B, ...)."""
    return values.view(-1, *[1] * (x.ndim - 1))

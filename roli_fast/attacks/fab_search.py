"""One run of FAB: from a start, along linearised decision boundaries, to a close adversarial."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from roli_fast.attacks.hyperplane import DUAL, ORDERS, step_to_plane
from roli_fast.attacks.objective import is_right
from roli_fast.attacks.passes import take
from roli_fast.engine import InputGradient, KeptForward
from roli_fast.losses import at_least_float32, margin
from roli_fast.norms import NORMS
from roli_fast.ops.reference import box_limits, compute_dtype


@dataclass(frozen=True)
class Difference:
    """The loss z_other - z_y, whose zeros are the boundary to that class."""

    other: Tensor

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        pair = at_least_float32(logits).gather(1, torch.stack([self.other, y], dim=1))
        return pair[:, 0] - pair[:, 1]

    def rows(self, part: slice) -> "Difference":
        """That of these samples alone."""
        return Difference(self.other[part])


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
    """The closest adversarial images so far, (B, ...); distance inf where there is none."""

    image: Tensor
    distance: Tensor
    margin: Tensor

    def update(self, image: Tensor, distance: Tensor, margin: Tensor, fooled: Tensor) -> None:
        closer = fooled & (distance < self.distance)
        self.image = torch.where(rows(closer, image), image, self.image)
        self.distance = torch.where(closer, distance, self.distance)
        self.margin = torch.where(closer, margin, self.margin)

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
        total = Closest(samples.x, infinite, samples.clean_margin)
        here, closest = torch.arange(count, device=device), total
        kept = engine.keep(samples.point, samples.y)
        normal, value = samples.planes(kept, samples.y)
        for step in range(self.steps):
            samples = replace(samples, point=self._move(samples, normal, value))
            last = step == self.steps - 1
            if last:
                kept, logits = None, engine.evaluate(samples.point, samples.y)[1]
            else:
                kept = engine.keep(samples.point, samples.y)
                logits = kept.logits
            fooled = ~is_right(logits, samples.y)
            distance = NORMS[self.norm].distance(samples.point, samples.x)
            closest.update(samples.point, distance, margin(logits, samples.y), fooled)
            if kept is None:
                break
            normal, value, samples, stay = self._go_on(engine, kept, samples, closest, fooled)
            if stay is not None:
                total.put(here, closest)
                here, closest = here[stay], take(closest, stay)
                if len(here) == 0:
                    break
        total.put(here, closest)
        return total

    def _go_on(
        self,
        engine: InputGradient,
        kept: KeptForward,
        samples: Samples,
        closest: Closest,
        fooled: Tensor,
    ) -> tuple[Tensor, Tensor, Samples, Tensor | None]:
        """Planes at the next points, the samples, and the indices of those that stay, if not all.

        Fooled samples step back towards x. The gradients of the others come from the forward that
        has just been made, as long as that saves passes.
        """
        back = samples.x + (samples.point - samples.x) * self.beta
        samples = replace(
            samples, point=torch.where(rows(fooled, back), back.to(back.dtype), samples.point)
        )
        stay = None
        if not self.minimal:
            stays = closest.distance > samples.limit
            if not bool(stays.all()):
                stay, fooled = stays.nonzero()[:, 0], fooled & stays
        moved = fooled.nonzero()[:, 0]
        rest = samples if stay is None else take(samples, stay)
        if len(rest.y) == 0:
            return samples.point, closest.distance, rest, stay
        if len(moved) * (1 + samples.planes.backwards) >= len(rest.y):
            del kept
            fresh = engine.keep(rest.point, rest.y)
            return *rest.planes(fresh, rest.y), rest, stay
        normal, value = samples.planes(kept, samples.y)
        if len(moved):
            again = take(samples, moved)
            fresh = again.planes(engine.keep(again.point, again.y), again.y)
            normal, value = (
                old.index_copy(0, moved, new)
                for old, new in zip((normal, value), fresh, strict=True)
            )
        if stay is not None:
            normal, value = normal[stay], value[stay]
        return normal, value, rest, stay

    def _move(self, samples: Samples, normal: Tensor, value: Tensor) -> Tensor:
        """Equation 8 of the paper: between the projections of the point and of x, overshot."""
        dtype, shape = compute_dtype(samples.x.dtype), samples.x.shape
        box = box_limits(*self.bounds, samples.x.dtype)
        pair = torch.stack([samples.point.flatten(1), samples.x.flatten(1)]).to(dtype)
        normal = normal.flatten(1).to(dtype)
        normal = torch.where(torch.isfinite(normal), normal, 0.0)
        value = value.to(dtype)
        gap = torch.stack([value, value + (normal * (pair[1] - pair[0])).sum(1)])
        step = step_to_plane(pair, normal, gap, norm=self.norm, bounds=box)
        length = torch.linalg.vector_norm(step, ORDERS[self.norm], dim=2).clamp(min=1e-8)
        alpha = (length[0] / (length[0] + length[1])).clamp(max=self.alpha_max)[:, None]
        ends = pair + self.eta * step
        return (ends[0] * (1 - alpha) + ends[1] * alpha).to(samples.x.dtype).clamp(*box).view(shape)

    def refine(self, engine: InputGradient, samples: Samples, closest: Closest) -> None:
        """The final search: a few steps of a secant method between x and the adversarial image.

        Each lands a tenth of the way beyond the crossing of the secant, on the adversarial side.
        """
        found = torch.isfinite(closest.distance).nonzero()[:, 0]
        if len(found) == 0:
            return
        samples, part = take(samples, found), take(closest, found)
        x, end = samples.x, part.image
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


def rows(values: Tensor, x: Tensor) -> Tensor:
    """(B,) shaped to broadcast over (B, ...)."""
    return values.view(-1, *[1] * (x.ndim - 1))

"""The draws of github.com/fra31/auto-attack, and our attacks with them: same batch, same seed, same
images.

They depend on the batch: on its size, on who is left of it at each restart, and in Square's l2 and
l1 at each query. Generators of their own are seeded as that code seeds torch's global one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import torch
from torch import Generator, Tensor

from roli_fast import ops
from roli_fast.attacks import APGD, APGDT, FAB, FABT, Attack, AutoAttack, Square
from roli_fast.attacks.apgd import Starts as APGDStarts
from roli_fast.attacks.base import AttackInputs, Ball
from roli_fast.attacks.ensemble import EnsembleResult
from roli_fast.attacks.fab import Starts as FABStarts
from roli_fast.attacks.objective import Goal
from roli_fast.attacks.passes import Samples, column
from roli_fast.losses import margin
from roli_fast.norms.l1 import L1Moves
from roli_fast.norms.windows import Draws, MassMoves, Moves, Proposal
from roli_fast.ops.rounding import compute_dtype
from roli_fast.threat import Bounds


class OfficialDraws:
    """What the original draws after it has reseeded torch's global generator: fp32, on the CPU.

    Args:
        seed: the original's.
        device: where the numbers are needed.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._generator, self._device = Generator().manual_seed(seed), device

    def uniform(self, *shape: int) -> Tensor:
        """In [0, 1)."""
        drawn = torch.rand(shape, generator=self._generator, dtype=torch.float32)
        return drawn.to(self._device)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal."""
        drawn = torch.randn(shape, generator=self._generator, dtype=torch.float32)
        return drawn.to(self._device)

    def sign(self, *shape: int) -> Tensor:
        """-1 or 1 (0 once in 2^24 times)."""
        return torch.sign(2 * self.uniform(*shape) - 1)

    def below(self, limit: int) -> int:
        """An integer in [0, limit); 0 for a limit of 0."""
        return int(self.uniform(1) * limit)


class OfficialAPGDStarts:
    """APGD's starts, in the original's arithmetic.

    Args:
        seed: the original's.
        device: of the images.
        stages: how many radii the search goes through.
    """

    def __init__(self, seed: int, device: torch.device, stages: int) -> None:
        self._cpu = Generator().manual_seed(seed)
        on_cpu = device.type == "cpu"
        self._device = self._cpu if on_cpu else Generator(device).manual_seed(seed)
        self._stages = stages

    def __call__(self, number: int, ball: Ball, samples: Samples) -> Tensor:
        """As that code draws: at the ball's boundary in linf and l2, projected noise in l1."""
        x, eps, order = samples.x, samples.eps, ball.norm.order
        if self._stages > 1:
            return self._large_radius(samples, ball.bounds)
        draw = torch.rand if math.isinf(order) else torch.randn
        noise = draw(x.shape, generator=self._cpu).to(x.device)
        if math.isinf(order):
            noise = 2 * noise - 1
            length = noise.abs().flatten(1).amax(1)
        else:
            length = noise.square().flatten(1).sum(1).sqrt()
        if order != 1:
            radius = column(eps, x) if isinstance(eps, Tensor) else eps
            noise = radius * torch.ones_like(x) * (noise / (column(length, x) + 1e-12))
        start = (x + noise).to(x.dtype)
        return ball.norm.project_(start, x, eps=eps, bounds=ball.bounds)

    def _large_radius(self, samples: Samples, bounds: Bounds) -> Tensor:
        """That code projects x + noise as if it were a change of x, and takes the projected change
        for a point; and it draws a start for every stage, which it does not use."""
        x, eps = samples.x, samples.eps
        noise = torch.randn(x.shape, generator=self._device, device=x.device, dtype=x.dtype)
        shifted = ops.l1_project_(x + (x + noise), x, eps=eps, bounds=bounds)
        for _ in range(self._stages):
            torch.randn(x.shape, generator=self._cpu)
        return ops.l1_project_(shifted - x, x, eps=eps, bounds=bounds)


class OfficialSquareDraws:
    """Square's numbers for `count` samples in lockstep.

    Windows are shared by all samples, and so are the signs of the linf attack; those of l2 and l1
    are drawn for every sample that is left. The last row and column are never reached.
    """

    def __init__(self, draws: OfficialDraws, count: int, *, shared_signs: bool) -> None:
        self._draws, self._count, self._shared = draws, count, shared_signs

    def stripes(self, channels: int, width: int) -> Tensor:
        return self._draws.sign(self._count, channels, 1, width)[:, :, 0]

    def tiles(self, count: int, channels: int) -> tuple[Tensor, Tensor]:
        drawn = [(self._flip(), self._signs(channels)) for _ in range(count)]
        flips, signs = zip(*drawn, strict=True)
        return torch.stack(flips, dim=1), torch.stack(signs, dim=1)

    def query(self, number: int, room: tuple[int, int], channels: int) -> Proposal:
        windows = 1 if self._shared else 2
        places = [[self._draws.below(side) for side in room] for _ in range(windows)]
        if self._shared:
            signs = self._draws.sign(channels, 1, 1).view(1, channels)
            flip = torch.zeros(1, dtype=torch.bool, device=signs.device)
        else:
            flip, signs = self._flip(), self._signs(channels)
        top, left = torch.tensor(places, device=signs.device).T[:, None]
        return Proposal(top, left, signs, flip)

    def keep(self, index: Tensor) -> None:
        self._count = len(index)

    def _flip(self) -> Tensor:
        return self._draws.uniform(1) > 0.5

    def _signs(self, channels: int) -> Tensor:
        return self._draws.sign(self._count, channels, 1, 1)[:, :, 0, 0]


@dataclass(frozen=True)
class _APGDDraws:
    """The original's starts for this batch and `seed`."""

    seed: int = 0

    def starts(self, inputs: AttackInputs, count: int) -> APGDStarts:
        """Those of `seed`."""
        large: bool = self.large_radius  # type: ignore[attr-defined]
        return OfficialAPGDStarts(self.seed, inputs.x.device, 3 if large else 1)


@dataclass(frozen=True)
class _FABDraws:
    """The original's starts for this batch and `seed`, without a final search."""

    seed: int = 0
    final_search: int = 0

    def starts(self, inputs: AttackInputs, ball: Ball) -> FABStarts:
        """Those of `seed`: half the radius away in a random direction, cut to the box."""
        draws, order = OfficialDraws(self.seed, inputs.x.device), ball.norm.order

        def drawn(_restart: int, left: Tensor) -> Tensor:
            x = inputs.x[left]
            eps = ball.eps[left] if isinstance(ball.eps, Tensor) else ball.eps
            noise = 2 * draws.uniform(*x.shape) - 1 if math.isinf(order) else draws.normal(*x.shape)
            noise = noise.to(compute_dtype(x.dtype))
            length = torch.linalg.vector_norm(noise.flatten(1), order, dim=1)
            radius = eps * torch.ones_like(length)
            return (x + column(radius / length * 0.5, x) * noise).to(x.dtype).clamp(*ball.bounds)

        return drawn


@dataclass(frozen=True)
class _SquareDraws(Square):
    """The original's numbers for this batch and `seed`.

    A tie counts as fooled, and windows never reach the last row and column. In l2 and l1 images
    have to be square, with a side that five tiles fill.
    """

    seed: int = 0

    def draws(self, inputs: AttackInputs) -> Callable[[int, Tensor], Draws]:
        """Those of `seed`, one run after another."""
        drawn, shared = OfficialDraws(self.seed, inputs.x.device), self.norm == "linf"
        return lambda _restart, ids: OfficialSquareDraws(drawn, len(ids), shared_signs=shared)

    def moves(self, ball: Ball, x: Tensor) -> Moves:
        """With the original's treatment of rounding errors."""
        moves = super().moves(ball, x)
        if isinstance(moves, L1Moves):
            moves = replace(moves, spare=1e-6)
        return replace(moves, cancelled=0.0) if isinstance(moves, MassMoves) else moves

    def reached(self, logits: Tensor, goal: Goal) -> Tensor:
        """Ties too."""
        return margin(logits, goal.y) >= 0 if goal.target is None else goal.reached(logits)


@dataclass(frozen=True)
class _AutoAttackDraws(AutoAttack):
    """Parts that draw as the original's for this batch and `seed`."""

    seed: int = 0

    def part(self, name: str, more: dict[str, Any]) -> Attack:
        """One component with the original's draws."""
        return with_original_draws(super().part(name, more), self.seed)

    def search(self, inputs: AttackInputs) -> EnsembleResult:
        """The caller's draws are not needed."""
        generator = Generator(inputs.x.device).manual_seed(self.seed)
        return super().search(replace(inputs, generator=generator))


MIXINS = {APGD: _APGDDraws, FAB: _FABDraws, Square: _SquareDraws, AutoAttack: _AutoAttackDraws}
"""Attack -> what makes its draws, and those of its subclasses, the original's."""


@cache
def original(kind: type[Attack]) -> Any:
    """The same attack with a field `seed` more and the original's draws for it."""
    mixin = next(MIXINS[base] for base in kind.__mro__ if base in MIXINS)
    bases = (mixin,) if issubclass(mixin, kind) else (mixin, kind)
    made = type(f"Original{kind.__name__}", bases, {"__doc__": mixin.__doc__})
    return dataclass(frozen=True, eq=vars(kind)["__dataclass_params__"].eq)(made)


OriginalAPGD, OriginalAPGDT = original(APGD), original(APGDT)
OriginalFAB, OriginalFABT = original(FAB), original(FABT)
OriginalSquare, OriginalAutoAttack = original(Square), original(AutoAttack)


def with_original_draws(attack: Attack, seed: int) -> Attack:
    """The same attack with the original's draws by `seed`; FAB without a final search."""
    settings = {field.name: getattr(attack, field.name) for field in fields(attack)}  # pyright: ignore
    settings.pop("final_search", None)
    return original(type(attack))(**settings, seed=seed)

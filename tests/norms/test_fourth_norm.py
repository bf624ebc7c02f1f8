"""A norm that the package does not know, in one class, goes wherever the others go."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from norm_checks import CHECKS
from tiny_attacks import generator, predicted
from tiny_models import Mixed, images, untouched
from torch import Generator, Tensor

from roli_fast import ops
from roli_fast.attacks import APGD, FAB, FGSM, MSD, PGD, AutoAttack, MultiAPGD, Square, Union
from roli_fast.errors import ArgumentError
from roli_fast.norms import NORMS, Norm
from roli_fast.norms.base import Bounds
from roli_fast.norms.linf import SignMoves
from roli_fast.threat import ThreatModel

X = images(6, 3, 6, 6)
Y = predicted(Mixed(), X)
EPS = 0.25


class LeftHalf(Norm):
    """Every entry of the left half of an image may change by at most eps, and no other."""

    order = math.inf
    usual_eps = 16 / 255

    @staticmethod
    def left(x: Tensor) -> Tensor:
        """1 in the left half of x, 0 in the right."""
        columns = torch.arange(x.shape[-1], device=x.device)
        return (columns < (x.shape[-1] + 1) // 2).to(x.dtype).expand_as(x)

    def random_start(
        self,
        x: Tensor,
        *,
        eps: float | Tensor,
        bounds: Bounds,
        generator: Generator | None,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
        start = ops.linf_random_start(
            x, eps=eps, bounds=bounds, generator=generator, sample_ids=sample_ids
        )
        return torch.where(self.left(x) > 0, start, x)

    def step_(
        self,
        x_adv: Tensor,
        grad: Tensor,
        x: Tensor,
        *,
        eps: float | Tensor,
        step_size: float | Tensor,
        bounds: Bounds,
    ) -> Tensor:
        masked = grad * self.left(grad)
        return ops.linf_step_(x_adv, masked, x, eps=eps, step_size=step_size, bounds=bounds)

    def project_(self, x_adv: Tensor, x: Tensor, *, eps: float | Tensor, bounds: Bounds) -> Tensor:
        x_adv.copy_(torch.where(self.left(x) > 0, x_adv, x))
        return ops.linf_step_(x_adv, x, x, eps=eps, step_size=0.0, bounds=bounds)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        change = (x_adv.double() - x.double()).abs()
        outside = torch.where((self.left(x) == 0) & (change > 0), torch.inf, change)
        return outside.flatten(1).amax(1)

    def dual(self, grad: Tensor) -> Tensor:
        return super().dual(grad * self.left(grad))


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    NORMS.register("left")(LeftHalf())
    try:
        yield
    finally:
        del NORMS._items["left"]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_checks_of_every_norm(check: Any) -> None:
    check(NORMS["left"])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (PGD, dict(restarts=2, keep="adversarial")),
        (FGSM, {}),
        (APGD, dict(steps=10)),
        (MSD, {}),
        (MultiAPGD, {}),
    ],
)
def test_gradient_attacks_step_in_it_and_in_no_other(kind: Any, options: dict[str, Any]) -> None:
    several = kind in (MSD, MultiAPGD)
    ball = dict(norms=("left", "l2"), eps=(EPS, 1e-3)) if several else dict(norm="left", eps=EPS)
    model, attack = Mixed(), kind(**ball, **options)
    with untouched(model):
        x_adv = attack(model, X, Y, generator())
    moved = NORMS["left"].distance(x_adv, X)
    own = moved.isfinite()
    assert (moved[own] <= torch.tensor(EPS).double()).all() and own.sum() >= 3
    assert several or own.all()
    assert (predicted(model, x_adv) != Y).sum() >= 2


def test_its_usual_radius_and_its_place_in_a_threat() -> None:
    assert ThreatModel("left").eps == 16 / 255
    threat = ThreatModel("linf", 0.1, other_norms=("left",), other_eps=(0.2,))
    assert [(each.norm, each.eps) for each in threat.each] == [("linf", 0.1), ("left", 0.2)]
    assert PGD(norm="left", eps=None).under(threat).eps == 0.2
    with pytest.raises(ArgumentError, match="`eps`: expected a radius in left of at most 1,"):
        ThreatModel("left", 8)
    with pytest.raises(ArgumentError, match="one of: l1, l2, left, linf"):
        ThreatModel("right")


def test_a_union_with_it() -> None:
    union = Union.over([("left", EPS), ("l2", 0.1)], attack=PGD(norm=None))
    result = union.run(Mixed(), X, Y, generator())
    assert result.fooled is not None and result.fooled.any()


@pytest.mark.parametrize("kind", [FAB, Square, AutoAttack])
def test_what_it_lacks_is_refused_by_name(kind: Any) -> None:
    part = "square_moves" if kind is Square else "fab_step_"
    message = f"`norm`: expected one of: l1, l2, linf, the norms that have `{part}`, got 'left'"
    with pytest.raises(ArgumentError, match=message):
        kind(norm="left")
    with pytest.raises(ArgumentError, match=message):
        kind(norm=None, eps=None).under(ThreatModel("left"))
    assert AutoAttack(norm="left", version="apgd").parts[0].norm == "left"  # pyright: ignore


def test_square_works_once_it_says_how() -> None:
    class WithMoves(LeftHalf):
        def square_moves(self, bounds: Bounds, channels: int, image: tuple[int, int]) -> SignMoves:
            return SignMoves(bounds, channels, image, self)

    NORMS._items["left"] = WithMoves()
    x_adv = Square(norm="left", eps=EPS, n_queries=50)(Mixed(), X, Y, generator())
    assert (NORMS["left"].distance(x_adv, X) <= torch.tensor(EPS).double()).all()
    assert (predicted(Mixed(), x_adv) != Y).any()

"""What every registered attack does with its radius: with its defaults it is strong in every norm,
a slip of units is refused, 0 is the image itself, and a rounding beyond a bound is clamped."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny_attacks import EPS, generator, has, in_norm, predicted, short
from tiny_models import Mixed, images
from torch import Tensor, nn

from roli_fast.attacks import ATTACKS, Attack
from roli_fast.errors import ArgumentError
from roli_fast.norms import NORMS
from roli_fast.threat import ThreatModel

X = images(6, 3, 6, 6)
Y = predicted(Mixed(), X)
USUAL = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}
LARGEST = {"linf": 1.0, "l2": math.sqrt(108), "l1": 108.0}
"""Norm -> the largest distance of two images like X."""
SHORT: dict[str, Any] = {"autoattack": dict(steps=20, n_queries=100), "square": dict(n_queries=300)}
"""Attack -> what makes its defaults quick enough for a test."""


@pytest.fixture(params=NORMS.names())
def norm(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=ATTACKS.names())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def kind(name: str) -> type[Attack]:
    return ATTACKS[name]


class Plane(nn.Module):
    """(B, 3, 16, 16) -> (B, 2): class 1 beyond a plane, 0 before it."""

    def __init__(self, away: float, dual: float) -> None:
        super().__init__()
        weight = torch.randn(3, 16, 16, generator=generator(1)).sign()
        weight *= 0.75 + 0.25 * torch.rand(weight.shape, generator=generator(2))
        self.weight = weight / torch.linalg.vector_norm(weight.flatten(), dual)
        self.away = away

    def forward(self, x: Tensor) -> Tensor:
        score = ((x - 0.5) * self.weight).flatten(1).sum(1) - self.away
        return torch.stack([-score, score], 1)


def test_the_default_call_goes_half_of_the_way_to_the_border(
    name: str, kind: type[Attack], norm: str
) -> None:
    """The other class is 0.55 of the usual radius away: what looks for the closest image stops
    there, and what follows gradients finds it."""
    model = Plane(0.55 * USUAL[norm], {"linf": 1.0, "l2": 2.0, "l1": math.inf}[norm])
    x, y = torch.full((3, 3, 16, 16), 0.5), torch.zeros(3, dtype=torch.int64)
    result = kind(**in_norm(kind, norm=norm), **SHORT.get(name, {})).run(model, x, y, generator())
    assert (NORMS[norm].distance(result.x_adv, x) > 0.5 * USUAL[norm]).all()
    assert name == "square" or (model(result.x_adv).argmax(1) == 1).all()
    said = [note for note in result.notes if "eps was not given" in note]
    assert said == [f"eps was not given: {USUAL[norm]:.4g} was taken, the usual radius in {norm}"]


def test_the_usual_radius_is_of_the_range_of_pixels(kind: type[Attack], norm: str) -> None:
    """8/255 says nothing of images in [0, 255]."""
    fields = in_norm(kind, norm=norm) | dict(bounds=(-127.5, 127.5))
    fast = {"steps": 3, "n_queries": 2}
    attack = kind(**fields, **{name: n for name, n in fast.items() if has(kind, name)})
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(768, 3)), torch.zeros(2, 3, 16, 16)
    (note,) = (n for n in attack.run(model, x, predicted(model, x)).notes if "not given" in n)
    assert f": {255 * USUAL[norm]:.4g} was taken" in note
    assert ThreatModel(norm, bounds=(-127.5, 127.5)).eps == 255 * USUAL[norm]


def test_a_radius_that_no_two_images_are_apart(kind: type[Attack], norm: str) -> None:
    """8 for 8/255, and the same slip in the norms whose balls depend on the image's size; 8/255 in
    linf says nothing about l2."""
    with pytest.raises(ArgumentError, match="'l2', which has no eps"):
        kind(**in_norm(kind, norm="l2")).under(ThreatModel())
    most, slip = LARGEST[norm], 2.0 * LARGEST[norm]
    message = rf"`eps`: expected a radius in {norm} of at most {most:.4g}.*Did you mean {slip:g}/2"
    with pytest.raises(ArgumentError, match=message):
        kind(**in_norm(kind, norm=norm, eps=slip))(Mixed(), X, Y)
    if norm == "linf":
        with pytest.raises(ArgumentError, match=message):
            kind(**in_norm(kind, norm=norm, eps=slip))
    whole = short(kind, norm, most)
    if "eps" in kind.options:
        radii = torch.full((6,), EPS[norm])
        radii[2] = slip
        for eps in (slip, radii):
            with pytest.raises(ArgumentError, match=message):
                whole(Mixed(), X, Y, eps=eps)


def test_at_a_radius_of_zero_an_image_is_itself(kind: type[Attack], norm: str) -> None:
    attack, every = short(kind, norm, EPS[norm]), (torch.zeros(6), 0, 0.0)
    still = dataclasses.replace(attack, eps=(0,) if has(kind, "norms") else 0)  # pyright: ignore
    result = still.run(Mixed(), X, Y, generator())
    assert torch.equal(result.x_adv, X) and (result.fooled is None or not result.fooled.any())
    if "eps" in kind.options:
        for eps in every:
            assert torch.equal(attack(Mixed(), X, Y, generator(), eps=eps), X)


def test_numbers_of_numpy_and_torch(kind: type[Attack]) -> None:
    """They become Python's, so that a configuration can be written and compared."""
    plain: Any = short(kind, "linf", 0.125)
    for number, whole in ((np.float32, np.int64), (torch.tensor, torch.tensor)):
        counts = {n: whole(getattr(plain, n)) for n in ("steps", "n_queries") if has(kind, n)}
        eps = (number(0.125),) if has(kind, "norms") else number(0.125)
        attack = dataclasses.replace(plain, eps=eps, **counts)
        assert attack == plain and repr(attack) == repr(plain)
        if "eps" in kind.options:
            found = [plain(Mixed(), X, Y, generator(), eps=e) for e in (0.25, number(0.25))]
            assert torch.equal(*found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_rounding_beyond_a_bound_is_no_fault(kind: type[Attack], dtype: torch.dtype) -> None:
    model, spacing = Mixed().to(dtype), torch.finfo(dtype).eps
    exact = X.to(dtype).clone()
    exact[:3, 0], exact[3:, 1] = 1.0, 0.0
    given = exact + spacing * ((exact == 1).to(dtype) - 0.5 * (exact == 0).to(dtype))
    assert given.max() == 1 + spacing and given.min() == -spacing / 2
    kept, y, attack = given.clone(), predicted(model, exact), short(kind, "linf")
    x_adv = attack(model, given, y, generator())
    assert torch.equal(x_adv, attack(model, exact, y, generator())) and torch.equal(given, kept)
    assert 0 <= x_adv.min() and x_adv.max() <= 1

"""DeepFool and CW on boundaries whose distance is known, and beside torchattacks."""

import pytest
import torch
from tiny_attacks import predicted
from tiny_models import Mixed, images
from torch import Tensor, nn

from roli_fast.attacks import CW, DeepFool
from roli_fast.errors import ArgumentError
from roli_fast.norms import NORMS


class Planes(nn.Module):
    """Three classes of images (B, 1, 2, 2); from the middle the nearest other is class 2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.tensor([[0.0] * 4, [1.0, 2.0, 0.0, 0.0], [1.0, 1.0, -1.0, 1.0]])
        self.bias = torch.tensor([0.0, -0.9, -0.6])

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5).flatten(1) @ self.weight.to(x).T + self.bias.to(x)


X = torch.full((2, 1, 2, 2), 0.5, dtype=torch.float64)
Y = torch.zeros(2, dtype=torch.int64)
NEAREST = {"linf": (0.6 / 4, 2), "l2": (0.6 / 2, 2), "l1": (0.9 / 2, 1)}
"""Norm -> distance, |value| over the dual norm of the normal, and the class behind it; the other
is 0.9 / 3, 0.9 / sqrt(5) and 0.6 / 1 away."""


@pytest.mark.parametrize("norm", NEAREST)
def test_deepfool_goes_just_beyond_the_nearest_plane(norm: str) -> None:
    result = DeepFool(norm=norm, eps=0.9, overshoot=0.02).run(Planes(), X, Y)
    distance, label = NEAREST[norm]
    assert (Planes()(result.x_adv).argmax(1) == label).all() and result.fooled.all()
    expected = torch.full((2,), 1.02 * distance, dtype=torch.float64)
    torch.testing.assert_close(result.distance, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(NORMS[norm].distance(result.x_adv, X), expected, atol=1e-6, rtol=0)


def test_cw_comes_near_the_closest_image_and_bisects_its_weight() -> None:
    result = CW(norm="l2", eps=0.9, steps=100, learning_rate=0.02).run(Planes(), X, Y)
    assert result.fooled.all()
    assert (result.distance >= 0.3).all() and (result.distance < 0.3 * 1.03).all()
    once = CW(norm="l2", eps=0.9, steps=50, c=0.05, searches=1).run(Planes(), X, Y)
    assert once.distance.isinf().all() and not once.fooled.any()  # the weight is too small


@pytest.mark.parametrize("attack", [DeepFool(norm="l2", eps=0.2), CW(norm="l2", eps=0.2, steps=50)])
def test_what_is_further_than_eps_is_pulled_back_and_does_not_count(attack) -> None:
    result = attack.run(Planes(), X, Y)
    assert not result.fooled.any() and (result.distance > 0.29).all()
    assert (NORMS["l2"].distance(result.x_adv, X) <= 0.2).all()
    wrong = attack.run(Planes(), X, Y + 1)  # classified as 0
    assert wrong.fooled.all() and (wrong.distance == 0).all()


def test_beside_torchattacks() -> None:
    theirs = pytest.importorskip("torchattacks")
    model, x = Mixed().eval(), images(12, 3, 6, 6)
    y = predicted(model, x)
    whole = {"norm": "l2", "eps": 10.0}
    own = DeepFool(**whole).run(model, x, y)
    other = theirs.DeepFool(model)(x, y)
    both = own.fooled & (predicted(model, other) != y)
    assert both.sum() >= 6 and own.fooled.sum() >= (predicted(model, other) != y).sum() - 1
    away = NORMS["l2"].distance(other, x)
    torch.testing.assert_close(own.distance[both], away[both], rtol=1e-4, atol=1e-5)
    own = CW(**whole, c=5.0, searches=1, steps=100).run(model, x, y)
    found = theirs.CW(model, c=5.0, steps=100)(x, y)
    right = predicted(model, found) != y
    assert torch.equal(own.distance.isfinite(), right)
    away = NORMS["l2"].distance(found, x)[right]
    torch.testing.assert_close(own.distance[right], away, rtol=0.05, atol=1e-3)


def test_options_that_make_no_sense() -> None:
    for options in ({"kappa": -1}, {"learning_rate": 0}, {"searches": 0}, {"c": 0.0}):
        with pytest.raises(ArgumentError):
            CW(**options)
    with pytest.raises(ArgumentError, match="overshoot"):
        DeepFool(overshoot=-0.1)

"""APGD's schedule against numbers worked by hand."""

from typing import Any

import pytest
import torch

from roli_fast.attacks.apgd import large_radius_stages
from roli_fast.attacks.apgd_search import Search, begin, checkpoints, sparse_checkpoints
from roli_fast.attacks.base import Ball
from roli_fast.attacks.objective import Goal
from roli_fast.attacks.passes import Samples
from roli_fast.norms import NORMS


def search(norm: str, start: float, loss: float) -> Search:
    """One before its first step from `start` in three of ten entries; the image is 1/2, eps too."""
    x = torch.full((1, 10), 0.5)
    samples = Samples(x, Goal("ce", torch.zeros(1).long()), torch.arange(1), 0.5)
    first = x.clone()
    first[0, :3] = start
    settings: dict[str, Any] = dict(steps=100, rho=0.75, density=None)
    ball = Ball(NORMS[norm], 0.5, (0.0, 1.0))
    return begin(ball, samples, first, torch.zeros_like(x), torch.tensor([loss]), **settings)


@pytest.mark.parametrize(
    ("steps", "looks"),
    [
        (100, {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}),
        (10, {2: 2, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1, 9: 1, 10: 1}),
        (20, {4: 4, 7: 3, 9: 2, 10: 1} | {n: 1 for n in range(11, 21)}),
        (1, {1: 1}),
    ],
)
def test_looks_back_come_after(steps: int, looks: dict[int, int]) -> None:
    assert checkpoints(steps) == looks


def test_l1_looks_back_every_four_percent() -> None:
    assert sparse_checkpoints(100) == dict.fromkeys(range(4, 101, 4), 4)
    assert list(sparse_checkpoints(30)) == list(range(1, 31))


@pytest.mark.parametrize(
    ("steps", "stages"), [(100, (30, 30, 40)), (11, (4, 4, 3)), (4, (2, 2, 0)), (5, (2, 2, 1))]
)
def test_large_radius_stages(steps: int, stages: tuple[int, ...]) -> None:
    assert large_radius_stages(steps) == list(zip((3, 2, 1), stages, strict=True))


def test_the_first_loss_is_compared_with_zero() -> None:
    """As in the authors' code: a DLR of -1 is no increase over a start of -2."""
    halving: Any = search("linf", 0.5, -2.0)
    halving.looks = {}
    for step, loss, increases in ((1, -1.0, 0), (2, -0.5, 1)):
        halving.loss = halving.best_loss = torch.tensor([loss])
        halving.look_back(step)
        assert halving.increases.tolist() == [increases]


def test_a_start_of_a_larger_radius_brings_its_own_density() -> None:
    sparsity: Any = search("l1", 0.6, 0.0)
    assert sparsity.density.tolist() == pytest.approx([3 / 10 / 1.5])
    assert sparsity.changed.tolist() == [3]

"""select_best_: which samples win, what is copied, and what stays."""

import math

import pytest
import torch
from cases import DTYPES
from references import reference
from torch import Tensor

from roli_fast import ops

SHAPES = [(6,), (6, 1), (6, 3, 8, 8), (6, 4097), (1, 3), (5000, 3), (0, 3, 4), (3, 0)]


def arguments(shape, dtype=torch.float32, losses=None) -> list[Tensor]:
    """best_x, best_grad, best_loss, x_adv, grad, loss."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randn(shape, generator=generator).to(dtype) for _ in range(4)]
    best, new = (torch.randn(shape[0], generator=generator).to(losses or dtype) for _ in range(2))
    return [*rows[:2], best, *rows[2:], new]


def test_by_hand(backend):
    inf, nan = math.inf, math.nan
    best_loss = torch.tensor([1.0, 1.0, 1.0, 1.0, -inf, nan, nan, -inf])
    loss = torch.tensor([2.0, 1.0, 0.5, nan, -1024.0, 0.0, nan, -inf])
    rows = [torch.full((8, 2), value) for value in (1.0, 2.0, nan, 4.0)]
    improved = ops.select_best_(rows[0], rows[1], best_loss, rows[2], rows[3], loss)
    wins = [True, False, False, False, True, True, False, False]
    assert improved.tolist() == wins and improved.dtype is torch.bool
    assert rows[0].isnan().all(1).tolist() == wins and rows[0][1].tolist() == [1.0, 1.0]
    assert rows[1].tolist() == [[4.0, 4.0] if win else [2.0, 2.0] for win in wins]
    assert best_loss[:6].tolist() == [2.0, 1.0, 1.0, 1.0, -1024.0, 0.0]
    assert best_loss[6].isnan() and best_loss[7] == -inf


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("losses", DTYPES, ids=str)
def test_equals_the_reference_bit_for_bit(backend, dtype, losses):
    for shape in SHAPES:
        values = arguments(shape, dtype, losses)
        *expected, mask = reference.select_best(*values)
        kept = [value.clone() for value in values[3:]]
        improved = ops.select_best_(*values)
        assert torch.equal(improved, mask) and (shape[0] < 5 or 0 < mask.sum() < shape[0])
        assert all(map(torch.equal, values, [*expected, *kept]))
        changed = [value._version for value in values]
        assert changed == [1, 1, 1, 0, 0, 0] or not values[0].numel()

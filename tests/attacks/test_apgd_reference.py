"""APGD's trajectories against a plain implementation, in fp64."""

from typing import Any

import pytest
import torch
from textbook_apgd import apgd, of_model
from wavy import Wavy, pictures, predicted

from roli_fast.attacks import APGD

EPS = {"linf": 0.08, "l2": 0.6, "l1": 4.0}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("steps", [1, 5, 40])
def test_every_iterate_and_the_best_equal_the_textbook(norm: Any, steps: int) -> None:
    model, x = Wavy(), pictures(8)
    y = predicted(model, x)
    attack = APGD(norm=norm, eps=EPS[norm], steps=steps, keep="best")
    model.seen.clear()
    result = attack(model, x, y, torch.Generator().manual_seed(0))
    seen = torch.stack(model.seen)
    assert len(seen) == steps + 1
    for i in range(8):
        iterates, best = apgd(of_model(model, y[i]), x[i], seen[0, i], EPS[norm], norm, steps)
        assert torch.allclose(seen[:, i], torch.stack(iterates), rtol=0, atol=1e-9)
        assert torch.allclose(result[i], best, rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_test_sees_the_schedule(norm: Any) -> None:
    """Without a look back nothing would be halved: most samples must depend on it."""
    model, x = Wavy(), pictures(8)
    y = predicted(model, x)
    plain = APGD(norm=norm, eps=EPS[norm], steps=40, keep="best", compact=False)
    runs = []
    for rho in (0.75, 1e-9):
        model.seen.clear()
        density = 0.2 if rho == 0.75 else 0.3
        changed = APGD(**{**plain.__dict__, "rho": rho, "density": density})
        changed(model, x, y, torch.Generator().manual_seed(0))
        runs.append(torch.stack(model.seen))
    differs = (runs[0] - runs[1]).abs().flatten(2).amax(2) > 1e-6  # (steps + 1, B)
    assert differs[-1].sum() >= 6

"""FAB and FAB-T beside torchattacks 3.5.1, a copy of AutoAttack's code, with its draws.

One fixed conv net on the CPU. The same samples are fooled, by the same images up to rounding:
1e-12 in fp64; 2e-6 in fp32, and 2e-5 in l1, where one entry takes up the rounding of all. Two
differences of the peer are stepped around: its `perturb` knows no l1 (`res` is unbound there), so
its single runs are compared; and it converts images to fp32, so in fp64 `.float()` is replaced.
What differs by intention and is off here: the final search of the paper, which AutoAttack's code
has dropped. The cost differs too: the peer makes C backwards a step, and two forwards.
"""

from typing import Any

import pytest
import torch
from oracle import PEER_NORM, Net, batch, margins, peer_in, torchattacks

from roli_fast.compat.original_draws import OriginalFAB, OriginalFABT
from roli_fast.norms import NORMS

EPS = {"linf": 0.05, "l2": 1.0, "l1": 16.0}
STEPS = 8
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "fab": (OriginalFAB, dict(multi_targeted=False)),
    "fab-t": (OriginalFABT, dict(multi_targeted=True)),
}


def tolerance(norm: str, dtype: torch.dtype) -> float:
    if dtype == torch.float64:
        return 1e-12
    return 2e-5 if norm == "l1" else 2e-6


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_same_samples_by_the_same_images(kind: str, norm: str, dtype: torch.dtype) -> None:
    ours, options = KINDS[kind]
    model, eps = Net().to(dtype), EPS[norm]
    x, y = batch(12, model)
    x = x.to(dtype)
    peer = torchattacks().FAB(
        model, norm=PEER_NORM[norm], eps=eps, steps=STEPS, n_restarts=2, seed=5, **options
    )
    with peer_in(dtype):
        truth = peer(x, y)
    result = ours(norm=norm, eps=eps, steps=STEPS, restarts=2, seed=5).run(model, x, y)
    fooled = margins(model, truth, y) > 0
    assert 3 <= fooled.sum() < 12  # some are, besides the two that are wrong from the start
    assert torch.equal(result.fooled, fooled)
    assert (result.x_adv - truth).abs().max() <= tolerance(norm, dtype)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_single_run_finds_the_same_image_at_any_distance(
    name: str, norm: str, dtype: torch.dtype
) -> None:
    model = Net().to(dtype)
    x, y = batch(12, model)
    right = margins(model, x.to(dtype), y) < 0
    x, y = x[right].to(dtype), y[right]
    peer = torchattacks().FAB(
        model, norm=PEER_NORM[norm], eps=0.1, steps=STEPS, seed=5, **KINDS[name][1]
    )
    numel = x[0].numel()  # no two images are farther apart, so that whatever is found counts
    far = {"linf": 0.999, "l2": numel**0.5, "l1": float(numel)}[norm]
    with peer_in(dtype):
        peer.target_class = 3
        targeted = name == "fab-t"
        single = peer.attack_single_run_targeted if targeted else peer.attack_single_run
        truth = single(x, y)
    kind = _ThirdClass if targeted else OriginalFAB
    result = kind(norm=norm, eps=far, steps=STEPS).run(model, x, y)
    assert result.fooled is not None and result.fooled.sum() >= 8
    assert torch.equal(result.fooled, margins(model, truth, y) > 0)
    assert (result.x_adv - truth).abs().max() <= tolerance(norm, dtype)
    assert result.distance is not None
    assert torch.equal(result.distance[result.fooled], NORMS[norm].distance(result.x_adv, x))


class _ThirdClass(OriginalFABT):
    """FAB-T towards the third likeliest class alone."""

    def planes(self, logits: torch.Tensor, y: torch.Tensor) -> Any:
        return list(super().planes(logits, y))[1:2]

"""APGD with the official draws against torchattacks', whose APGD repeats the authors' code.

Not installed with the package's tests: it pins an old `requests` and brings a second `robustbench`.
To run these: `pip install --no-deps torchattacks requests`.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from wavy import Wavy, pictures, predicted

from roli_fast.attacks import APGD
from roli_fast.compat.original_draws import OriginalAPGD, OriginalAPGDT

torchattacks = pytest.importorskip(
    "torchattacks", reason="the oracle torchattacks is not installed: see this file's docstring"
)

NORMS = {"linf": "Linf", "l2": "L2"}
SMALL = {"linf": 0.01, "l2": 0.1}
STEPS = 20
"""They look back after 4, 7, 9, 10, 11, ... of them."""
COMPARED = 13
"""The start and 12 steps: later some searches have converged, and which iterate is best hangs on
the last bit of the loss."""


@pytest.fixture
def fp64() -> Iterator[None]:
    """The oracle draws in the default dtype."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def theirs(kind: str, model: Wavy, options: dict[str, Any]) -> Any:
    common: dict[str, Any] = dict(
        norm=NORMS[options["norm"]],
        eps=options["eps"],
        steps=options["steps"],
        n_restarts=options["restarts"],
        seed=3,
    )
    if kind == "t":
        return torchattacks.APGDT(model, **common, n_classes=6)
    return torchattacks.APGD(model, **common, loss=kind)


def ours(kind: str, options: dict[str, Any], **more: Any) -> APGD:
    options = {**options, "seed": 3, **more}
    if kind == "t":
        return OriginalAPGDT(**options, targets=5)
    return OriginalAPGD(**options, loss=kind)


def batches(kind: str, norm: str, count: int) -> list[slice]:
    """One image at a time in l2's APGD-T: there the oracle gives all images the first one's step,
    which the authors' code does not."""
    if (kind, norm) == ("t", "l2"):
        return [slice(i, i + 1) for i in range(count // 4)]
    return [slice(0, count)]


def searches(model: Wavy, x: Tensor) -> list[Tensor]:
    """(STEPS + 1, B, ...) for each start, from what the model has seen since the last call.

    Passes on original images are left out: the oracle ranks the classes before each target.
    """
    originals = {row.numpy().tobytes() for row in x}
    seen = [batch for batch in model.seen if batch[0].numpy().tobytes() not in originals]
    model.seen.clear()
    assert len(seen) % (STEPS + 1) == 0
    return [torch.stack(seen[i : i + STEPS + 1]) for i in range(0, len(seen), STEPS + 1)]


def unfooled(run: Tensor, x: Tensor, y: Tensor, model: Wavy) -> Tensor:
    """(iterates, B): which iterates come before a sample's first misclassified one."""
    sample = torch.stack([(x - start).abs().flatten(1).amax(1).argmin() for start in run[0]])
    right = torch.stack([predicted(model, iterates) == y[sample] for iterates in run])
    model.seen.clear()
    return right.long().cumprod(0).bool()


@pytest.mark.parametrize("restarts", [1, 2])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", ["ce", "dlr", "t"])
def test_every_iterate_is_the_same_in_fp64(kind: str, norm: str, restarts: int, fp64: None) -> None:
    """Until a sample is fooled, which is where its search ends.

    The oracle adds 1e-12 to lengths in l2, hence 1e-9 and not less. Afterwards the DLR can be
    constant (where the label comes third), and its gradient rounding noise of any direction.
    """
    x, model = pictures(16), Wavy()
    y = predicted(model, x)
    options = dict(norm=norm, eps=SMALL[norm], steps=STEPS, restarts=restarts)
    compared = 0
    for part in batches(kind, norm, 16):
        model.seen.clear()
        theirs(kind, model, options)(x[part], y[part])
        their_runs = searches(model, x)
        ours(kind, options, compact=False)(model, x[part], y[part])
        our_runs = searches(model, x)
        for own, other in zip(our_runs, their_runs, strict=True):
            own, other = own[:COMPARED], other[:COMPARED]
            before = unfooled(other, x, y, model)
            assert torch.allclose(own[0], other[0], rtol=0, atol=1e-9)
            assert torch.allclose(own[before], other[before], rtol=0, atol=1e-9)
            compared += int(before[-1].sum())
    assert compared >= 3 * restarts  # all twelve steps

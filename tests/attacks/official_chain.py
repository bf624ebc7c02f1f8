"""AutoAttack's components as torchattacks has them, one after another, each on the survivors."""

import inspect
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

from oracle import PEER_NORM, margins, peer_in, torchattacks
from torch import Tensor, nn

_WINDOWS = (
    "self.lp_norm(delta_curr * mask_image)",
    "((delta_curr * mask_image) ** 2).sum(dim=(-2, -1), keepdim=True).sqrt()",
)
Peer = Callable[[Tensor, Tensor], Tensor]


def peers(model: nn.Module, norm: str, eps: float, steps: int, queries: int) -> dict[str, Peer]:
    """The components of AutoAttack's version standard, seeded with 0.

    torchattacks' own AutoAttack makes 10 steps, rescales Square's schedule, and differs from the
    authors' code in two more places, which are put right here: its APGD-T in l2 gives all images
    the first one's step size, and its Square in l2 takes the length of two windows over the
    channels.
    """
    library = torchattacks()
    common: dict[str, Any] = dict(norm=PEER_NORM[norm], eps=eps, seed=0)
    targeted = library.APGDT(model, **common, steps=steps, n_restarts=1)
    repaired(targeted, "attack_single_run", "step_size[0]", "step_size")
    square = library.Square(model, **common, n_queries=queries, resc_schedule=False)
    if norm == "l2":
        repaired(square, "attack_single_run", *_WINDOWS)
    return {
        "apgd-ce": library.APGD(model, **common, steps=steps, n_restarts=1, loss="ce"),
        "apgd-t": targeted,
        "fab-t": library.FAB(model, **common, steps=steps, n_restarts=1, multi_targeted=True),
        "square": square,
    }


def repaired(peer: Any, method: str, wrong: str, right: str) -> None:
    """Give `peer` its own method with one expression replaced, everywhere it stands."""
    function = getattr(type(peer), method)
    source = textwrap.dedent(inspect.getsource(function))
    assert wrong in source
    scope: dict[str, Any] = {}
    exec(source.replace(wrong, right), function.__globals__, scope)
    setattr(peer, method, scope[method].__get__(peer))


class Step(NamedTuple):
    """One component of the chain: whom it attacked, bool (N,), and whom it left right."""

    name: str
    attacked: Tensor
    robust: Tensor


def official_chain(
    model: nn.Module, chain: dict[str, Peer], x: Tensor, y: Tensor, *, bs: int | None = None
) -> list[Step]:
    """Each peer on those that the ones before left right, in batches of `bs` of them."""
    robust, steps = margins(model, x, y) < 0, []
    for name, peer in chain.items():
        attacked = robust.clone()
        for rows in attacked.nonzero()[:, 0].split(bs or len(x)):
            with peer_in(x.dtype):
                found = peer(x[rows], y[rows])
            robust[rows] = margins(model, found, y[rows]) < 0
        steps.append(Step(name, attacked, robust.clone()))
    return steps

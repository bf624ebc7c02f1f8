"""Square beside torchattacks 3.5.1, a copy of AutoAttack's code, with its draws.

One fixed conv net on the CPU in fp64, the same seed: the same samples are fooled at the same
queries, by the same images: to 1e-12 in linf, and to 1e-3 in l2, where the original divides a
window without any change by its length plus 1e-12, which raises a rounding error of 1e-17.

One difference is stepped around: AutoAttack's present code takes the length of what two windows
hold channel by channel, the peer has an older one that takes it over the image. It is replaced.
The peer has no l1: a plain version in this file, sample by sample in slices, takes its place.
"""

import math

import pytest
import torch
from oracle import PEER_NORM, Net, batch, margins, peer_in, torchattacks
from torch import Tensor

from roli_fast.compat.original_draws import OriginalSquare

EPS = {"linf": 0.22, "l2": 4.1}
QUERIES = 120


def peer_square(model: Net, norm: str, eps: float, loss: str):
    peer = torchattacks().Square(
        model, norm=PEER_NORM[norm], eps=eps, n_queries=QUERIES, seed=3, loss=loss
    )
    if norm == "l2":
        whole, calls = peer.lp_norm, [0]

        def lp_norm(delta: Tensor) -> Tensor:
            calls[0] += 1
            if calls[0] % 3 == 2:  # of three calls a query that of windows
                return (delta**2).sum(dim=(-2, -1), keepdim=True).sqrt()
            return whole(delta)

        peer.lp_norm = lp_norm
    return peer


@pytest.mark.parametrize(("norm", "loss"), [("linf", "margin"), ("l2", "ce")])
def test_the_same_queries_and_images_also_where_nothing_is_fooled(norm: str, loss: str) -> None:
    model = Net()
    x, y = batch(16, model)
    right = margins(model, x, y) < 0
    x, y = x[right], y[right]
    peer = peer_square(model, norm, EPS[norm], loss)
    with peer_in(torch.float64):
        peer.init_hyperparam(x)
        torch.manual_seed(3)
        queries, truth = peer.attack_single_run(x, y)
    attack = OriginalSquare(norm=norm, eps=EPS[norm], n_queries=QUERIES, seed=3, loss=loss)
    result = attack.run(model, x, y)
    assert result.queries is not None
    assert (result.queries - 1).tolist() == queries.tolist()  # ours count the clean forward
    assert 3 <= (margins(model, truth, y) > 0).sum() < len(x)
    assert (result.x_adv - truth).abs().max() <= (1e-12 if norm == "linf" else 1e-3)


def projected(v: Tensor, x: Tensor, eps: float) -> Tensor:
    """The point of the l1 ball and the box that is nearest to v, by bisection, for one image."""
    room = torch.where(v > x, 1 - x, x)

    def cut(threshold: float) -> Tensor:
        return ((v - x).abs() - threshold).clamp(min=0).minimum(room)

    low, high = 0.0, (v - x).abs().max().item()
    if cut(0.0).sum() <= eps:
        high = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if cut(middle).sum() <= eps else (middle, high)
    return x + torch.sign(v - x) * cut(high)


def hills(side: int, turned: bool) -> Tensor:
    """The l1 pattern of "Mind the box", written down ring by ring."""
    whole = torch.zeros(side, side, dtype=torch.float64)
    for rows, sign in ((range(side // 2), 1.0), (range(side // 2, side), -1.0)):
        hill = torch.zeros(len(rows), side, dtype=torch.float64)
        for ring in range(max(len(rows) // 2, side // 2) + 1):
            up, left = len(rows) // 2 - ring, side // 2 - ring
            hill[max(up, 0) : up + 2 * ring + 1, max(left, 0) : left + 2 * ring + 1] += (
                1 / (ring + 1) ** 4
            )
        whole[list(rows)] = sign * hill / hill.sum()
    whole = whole / whole.abs().sum()
    return whole.t() if turned else whole


def plain_l1(model: Net, x: Tensor, y: Tensor, eps: float, queries: int) -> tuple[Tensor, Tensor]:
    """The l1 attack as AutoAttack runs it, from `torch.manual_seed`: images, queries made."""
    count, channels, size, _ = x.shape

    def sign(n: int) -> Tensor:
        return torch.sign(2 * torch.rand(n, channels, 1, 1) - 1).double()

    def place(room: int) -> int:
        return int(torch.rand(1) * room)

    tile = size // 5
    start, edge = torch.zeros_like(x), (size - 5 * tile) // 2
    for row in range(edge, edge + 5 * tile, tile):
        for column in range(edge, edge + 5 * tile, tile):
            pattern = hills(tile, bool(torch.rand(1) > 0.5))
            start[:, :, row : row + tile, column : column + tile] = pattern * sign(count)
    eps = eps * (1 - 1e-6)
    best = torch.stack([projected(x[i] + start[i], x[i], eps) for i in range(count)])
    loss, used = margins(model, best, y), torch.ones(count)
    for query in range(queries):
        left = (loss < 0).nonzero()[:, 0].tolist()
        if not left:
            break
        moment = int(query / queries * 10000)
        halved = sum(moment > after for after in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))
        side = max(round(math.sqrt(0.8 / 2**halved) * size), 3)
        side += side % 2 == 0
        a, b, c, d = (place(size - side) for _ in range(4))
        pattern = hills(side, bool(torch.rand(1) > 0.5))
        signs = sign(len(left))
        for place_in_batch, i in enumerate(left):
            delta = best[i] - x[i]
            one, two = delta[:, a : a + side, b : b + side], torch.zeros_like(delta)
            two[:, a : a + side, b : b + side] = 1
            two[:, c : c + side, d : d + side] = 1
            held = (delta * two).abs().sum((1, 2), keepdim=True)
            new = pattern * signs[place_in_batch]
            new = new + one / (1e-12 + one.abs().sum((1, 2), keepdim=True))
            spare = max(eps / (1 - 1e-6) - delta.abs().sum().item(), 0.0) / channels
            new = new / (1e-12 + new.abs().sum((1, 2), keepdim=True)) * (spare + held) * channels
            delta = delta.clone()
            delta[:, c : c + side, d : d + side] = 0
            delta[:, a : a + side, b : b + side] = new
            tried = projected(x[i] + delta, x[i], eps)
            value = margins(model, tried[None], y[i : i + 1])[0]
            used[i] += 1
            if value > loss[i]:
                best[i], loss[i] = tried, value
    return best, used


def test_l1_against_a_plain_version() -> None:
    model, eps, queries = Net(), 40.0, 30
    x, y = batch(600, model)
    clean = margins(model, x, y)
    nearest = torch.where(clean < 0, clean, -torch.inf).argsort(descending=True)[:6]
    x, y = x[nearest], y[nearest]
    with torch.random.fork_rng():
        torch.manual_seed(11)
        truth, used = plain_l1(model, x, y, eps, queries)
    attack = OriginalSquare(norm="l1", eps=eps, n_queries=queries, seed=11)
    result = attack.run(model, x, y)
    assert result.queries is not None
    assert (result.queries - 1).tolist() == used.tolist() and len(set(used.tolist())) > 1
    assert torch.allclose(result.x_adv, truth, rtol=0, atol=1e-8)

"""Several searches of the same samples, one after another: their draws, and what is kept."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class SearchResult:
    """What one search found for each of its samples.

    Args:
        x_adv: what fools the model where `fooled`, else the image of highest loss.
        fooled: bool (B,), who reached the goal.
        loss: highest loss met, (B,); of those that are not fooled it decides between searches.
    """

    x_adv: Tensor
    fooled: Tensor
    loss: Tensor


def restart_generators(
    generator: Generator | None, count: int, device: torch.device
) -> list[Generator | None]:
    """One source of draws a search, all seeded by one call to `generator`.

    So the caller's generator moves on by the same amount however early a search ends. A single
    search has the generator itself.
    """
    if count == 1:
        return [generator]
    seeds = torch.randint(2**63 - 1, (count,), generator=generator, device=device).tolist()
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def until_fooled(
    x: Tensor, fooled: Tensor, searches: Iterable[Callable[[Tensor], SearchResult]]
) -> SearchResult:
    """One search after another, each on the rows (indices) that none before it fooled.

    A sample's result is that of the search that fooled it, or else the one of highest loss.

    Args:
        x: the original images (B, ...), the result of who is not searched.
        fooled: bool (B,), who is not to be searched at all.
        searches: rows -> what the search found for these.
    """
    x_adv, fooled = x.clone(), fooled.clone()
    highest = torch.full(fooled.shape, -torch.inf, dtype=torch.float64, device=x.device)
    for search in searches:
        rows = (~fooled).nonzero()[:, 0]
        if len(rows) == 0:
            break
        found, before = search(rows), highest[rows]
        better = found.fooled | (found.loss > before) | before.isneginf()
        x_adv[rows[better]] = found.x_adv[better]
        highest[rows[better]] = found.loss[better].double()
        fooled[rows] = found.fooled
    return SearchResult(x_adv, fooled, highest)


def highest_loss(searches: Iterable[Callable[[], SearchResult]]) -> Tensor:
    """The image of highest loss of all searches, for every sample, without a wait for the
    device."""
    first, *others = searches
    best = first()
    x_adv, loss = best.x_adv, best.loss
    for search in others:
        found = search()
        better = found.loss > loss
        x_adv = torch.where(better.view(-1, *[1] * (x_adv.ndim - 1)), found.x_adv, x_adv)
        loss = torch.where(better, found.loss, loss)
    return x_adv

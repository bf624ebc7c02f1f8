"""Several searches of the same samples, one after another: their draws, and what is kept."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from roli_fast.attacks.passes import column


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


class Best:
    """The iterate of highest loss, kept for each image on its own; with `whole_batch` that of the
    highest mean, for all images."""

    def __init__(self, *, whole_batch: bool = False) -> None:
        self._whole_batch = whole_batch
        self.images: Tensor | None = None
        self.loss: Tensor | None = None

    def update(self, x_adv: Tensor, loss: Tensor) -> Tensor:
        """Let `x_adv` (B, ...) with `loss` (B,) compete; returns the best so far."""
        if self.images is None or self.loss is None:
            self.images, self.loss = x_adv.clone(), loss.clone()
            return self.images
        better = (loss > self.loss) | self.loss.isnan()  # a NaN never hides a number
        if self._whole_batch:
            better = (loss.mean() > self.loss.mean()).expand_as(loss)
        self.loss = torch.where(better, loss, self.loss)
        self.images = torch.where(column(better, x_adv), x_adv, self.images)
        return self.images


def highest_loss(found: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Of several (images, losses (B,)) each sample's image of highest loss, at equal losses the
    first's; without a wait for the device."""
    best = Best()
    for x_adv, loss in found:
        best.update(x_adv, loss)
    assert best.images is not None
    return best.images

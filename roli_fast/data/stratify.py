"""Choosing samples class by class, the same ones on every machine and in every version.

The samples of a class are ordered by a hash of (purpose, seed, name) and the first ones are
taken. A hash, unlike a shuffle, keeps its order when images are added, and a larger
`max_per_class` keeps the samples of a smaller one.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from roli_fast.data.pixels import Pixels
from roli_fast.errors import DataError, describe
from roli_fast.seeds import derive_seed


def cut(
    rows: Tensor, labels: Tensor, pixels: Pixels, *, purpose: str, seed: int, share: float
) -> tuple[Tensor, Tensor]:
    """Take `share` of each class, rounded and at least one sample, and leave at least one.

    Args:
        rows: int64 (K,), the rows of `pixels` to choose from.
        labels: int64 (N,), the label of every row of `pixels`.
        pixels: gives the names that order the samples.
        purpose: "val", "test", ...: cuts for different purposes are independent.
        seed: another seed, another choice.
        share: in (0, 1).

    Returns:
        (rest, taken), both ascending.

    Raises:
        DataError: a class has a single sample.
    """

    def count(available: int) -> int:
        if available < 2:
            fix = "Add images, or leave the class out."
            got = f"a class with {available}"
            raise DataError(describe("root", f"two images a class to cut {purpose!r}", got, fix))
        return min(max(round(share * available), 1), available - 1)

    return _take(rows, labels, _order(pixels, purpose, seed), count)


def cap(rows: Tensor, labels: Tensor, pixels: Pixels, *, seed: int, most: int | None) -> Tensor:
    """At most `most` rows of each class, ascending; all of them for None."""
    if most is None:
        return rows
    return _take(rows, labels, _order(pixels, "cap", seed), lambda _: most)[1]


def _order(pixels: Pixels, purpose: str, seed: int) -> Callable[[int], int]:
    return lambda row: derive_seed(purpose, seed, pixels.name(row))


def _take(
    rows: Tensor, labels: Tensor, order: Callable[[int], int], count: Callable[[int], int]
) -> tuple[Tensor, Tensor]:
    members: dict[int, list[int]] = {}
    for row, label in zip(rows.tolist(), labels[rows].tolist(), strict=True):
        members.setdefault(label, []).append(row)
    rest, taken = [], []
    for of_class in members.values():
        ranked = sorted(of_class, key=order)
        first = count(len(ranked))
        taken += ranked[:first]
        rest += ranked[first:]
    return _ascending(rest), _ascending(taken)


def _ascending(rows: list[int]) -> Tensor:
    return torch.tensor(sorted(rows), dtype=torch.int64)

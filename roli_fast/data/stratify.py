"""Choosing samples class by class, the same ones on every machine and in every version.

The samples of a class are ordered by a hash of (purpose, seed, name) and the first ones are
taken. A hash, unlike a shuffle, keeps its order when images are added, and a larger
`max_per_class` keeps the samples of a smaller one.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from roli_fast.data.pixels import Pixels
from roli_fast.errors import DataError, describe
from roli_fast.seeds import derive_seed


def cut(
    rows: Tensor,
    labels: Tensor,
    pixels: Pixels,
    classes: Sequence[str],
    *,
    seed: int,
    shares: Mapping[str, float],
) -> dict[str, Tensor]:
    """Cut `rows` class by class: each part gets its share, rounded and at least one sample, and
    "train" the rest, at least one.

    Args:
        rows: int64 (K,), the rows of `pixels` to choose from.
        labels: int64 (N,), the label of every row of `pixels`.
        pixels: gives the names that order the samples.
        classes: the name of each label.
        seed: another seed, another choice.
        shares: part ("test", "val") -> its share of `rows`, in (0, 1); cut in this order.

    Returns:
        Part -> its rows, ascending, and "train".

    Raises:
        DataError: a class has fewer samples than there are parts.
    """
    counts = torch.bincount(labels[rows], minlength=len(classes)).tolist()
    named = zip(classes, counts, strict=True)
    few = [f"{count} of {name!r}" for name, count in named if 0 < count <= len(shares)]
    if few:
        what = " and ".join(map(repr, shares))
        expected = f"{len(shares) + 1} or more images a class, to cut {what}"
        fix = "Add images, or leave the class out."
        raise DataError(describe("root", expected, ", ".join(few), fix))
    parts, whole = {"train": rows}, 1.0
    for purpose, share in shares.items():
        part = share / whole  # of what is left
        parts["train"], parts[purpose] = _take(
            parts["train"], labels, _order(pixels, purpose, seed), partial(_count, share=part)
        )
        whole -= share
    return parts


def _count(available: int, *, share: float) -> int:
    return min(max(round(share * available), 1), available - 1)


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

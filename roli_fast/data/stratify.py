"""Choosing samples class by class, the same ones on every machine and in every version.

The samples of a class are ordered by a hash of (purpose, seed, name) and the first ones are
taken. A hash, unlike a shuffle, keeps its order when images are added, and a larger
`max_per_class` keeps the samples of a smaller one.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from roli_fast.data.pixels import Pixels
from roli_fast.errors import ArgumentError, DataError, describe
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
        Part -> its rows, in their order, and "train".

    Raises:
        ArgumentError: a share is not in (0, 1), or they leave nothing to train on.
        DataError: a class has fewer samples than there are parts.
    """
    for name, share in shares.items():
        if not 0 < share < 1:
            raise ArgumentError(describe(f"{name}_fraction", "a fraction in (0, 1)", share))
    if sum(shares.values()) >= 1:
        names = " + ".join(f"{name}_fraction" for name in shares)
        raise ArgumentError(describe(names, "a sum below 1", sum(shares.values())))
    counts = torch.bincount(labels[rows], minlength=len(classes)).tolist()
    named = zip(classes, counts, strict=True)
    few = [f"{count} of {name!r}" for name, count in named if 0 < count <= len(shares)]
    if few:
        what = " and ".join(map(repr, shares))
        expected = f"{len(shares) + 1} or more images a class, to cut {what}"
        fix = "Add images, or leave the class out."
        raise DataError(describe("root", expected, ", ".join(few), fix))
    parts, left = {"train": rows}, 1.0
    for name, share in shares.items():
        part, rest = share / left, parts["train"]  # of what is left

        def count(available: int, part: float = part) -> int:
            return min(max(round(part * available), 1), available - 1)

        parts[name] = _first(rest, labels, pixels, (name, seed), count)
        parts["train"] = rest[~torch.isin(rest, parts[name])]
        left -= share
    return parts


def cap(rows: Tensor, labels: Tensor, pixels: Pixels, *, seed: int, most: int | None) -> Tensor:
    """At most `most` rows of each class, in their order; all of them for None."""
    if most is None:
        return rows
    return _first(rows, labels, pixels, ("cap", seed), lambda _: most)


def _first(
    rows: Tensor,
    labels: Tensor,
    pixels: Pixels,
    key: tuple[str, int],
    count: Callable[[int], int],
) -> Tensor:
    """The first `count(available)` of each class by the hash of (*key, name)."""
    members: dict[int, list[int]] = {}
    for row, label in zip(rows.tolist(), labels[rows].tolist(), strict=True):
        members.setdefault(label, []).append(row)
    taken: list[int] = []
    for available in members.values():
        ranked = sorted(available, key=lambda row: derive_seed(*key, pixels.name(row)))
        taken += ranked[: count(len(ranked))]
    return rows[torch.isin(rows, torch.tensor(taken, dtype=torch.int64))]

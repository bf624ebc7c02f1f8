"""Shares of images that are right: flags, their text in files, shares of every class, and how sure
a share is."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from roli_fast.errors import ArgumentError, describe


def accuracy(flags: Tensor) -> float:
    """Share of true flags."""
    return flags.double().mean().item()


def to_text(flags: Tensor) -> str:
    """One character a sample, "1" for true."""
    return "".join("1" if flag else "0" for flag in flags.tolist())


def to_flags(text: str) -> Tensor:
    """The flags, bool (N,), of such a text."""
    if set(text) - {"0", "1"}:
        raise ValueError(f"flags are 0 and 1, got {text!r}")
    return torch.tensor([letter == "1" for letter in text], dtype=torch.bool)


def accuracy_of(flags: Tensor) -> dict[str, Any]:
    """A share of true flags with its 95 % interval, and the flags."""
    right = int(flags.sum())
    return {
        "accuracy": right / len(flags),
        "interval_95": list(wilson_interval(right, len(flags))),
        "flags": to_text(flags),
    }


def mean_accuracy(entries: Iterable[dict[str, Any]]) -> float:
    """The mean over what `accuracy_of` made."""
    shares = [entry["accuracy"] for entry in entries]
    return sum(shares) / len(shares)


def by_class(
    names: Mapping[int, str], labels: Tensor, columns: Mapping[str, Sequence[Tensor]]
) -> list[dict[str, Any]]:
    """Accuracy of every class, worst first: an entry each with "class", "label", "images" and
    "accuracy", by column.

    Args:
        names: of the labels.
        labels: int64 (N,).
        columns: name -> flags (N,), one for each seed, over which the mean is taken; the last
            column's accuracy is the order, then that of the others from the last to the first.
    """
    found = []
    for label in labels.unique().tolist():
        own = labels == label
        shares = {
            name: sum(accuracy(flags[own]) for flags in seeds) / len(seeds)
            for name, seeds in columns.items()
        }
        entry = {"class": names[label], "label": label, "images": int(own.sum())}
        found.append(entry | {"accuracy": shares})
    return sorted(found, key=lambda entry: [*entry["accuracy"].values()][::-1])


def majority(labels: Tensor) -> float:
    """Share of the most frequent label: what always answering it gets right, the best guess
    without a look at the image."""
    return int(labels.bincount().max()) / len(labels)


def collapse(clean: Tensor, labels: Tensor, names: Mapping[int, str]) -> str | None:
    """A sentence on a model that has learnt nothing: right for one class alone, or not better than
    guessing by the 95 % interval; None for any other.

    Args:
        clean: flags (N,) of the clean images that are right.
        labels: int64 (N,), of at least two classes.
        names: of the labels.
    """
    guess, right = majority(labels), int(clean.sum())
    if guess == 1:
        return None
    answered = labels[clean].unique().tolist()
    if len(answered) == 1 and bool(clean[labels == answered[0]].all()):
        return (
            f"the model has collapsed: it is right for class '{names[answered[0]]}' alone, as if "
            "it gave every image this answer"
        )
    if wilson_interval(right, len(clean))[0] <= guess:
        return (
            f"the model may have learnt nothing: its clean accuracy, {100 * right / len(clean):.1f}"
            f" %, is within the noise of {100 * guess:.1f} %, the share of the most frequent class"
        )
    return None


def standard_error(accuracy: float, count: int) -> float:
    """Binomial standard error sqrt(a (1 - a) / n) of an accuracy `a` measured on n images.

    Args:
        accuracy: share in [0, 1].
        count: number of images, at least one.
    """
    if not 0 <= accuracy <= 1:
        raise ArgumentError(describe("accuracy", "a share in [0, 1]", accuracy))
    return math.sqrt(accuracy * (1 - accuracy) / count)


def wilson_interval(right: int, count: int, *, level: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a share (Wilson 1927, JASA 22, 209-212).

    With p = right / count and z the normal quantile, (p + z^2/2n -+ z sqrt(p (1-p)/n + z^2/4n^2)) /
    (1 + z^2/n). Unlike p -+ z times the standard error it stays inside [0, 1] and has a width at 0
    and 1. A choice that is balanced over the classes varies less than this interval allows for. It
    knows nothing of seeds or training runs.

    Args:
        right: images classified right.
        count: images seen, at least one.
        level: how often such an interval holds the truth, in (0, 1).

    Returns:
        (low, high), shares in [0, 1].
    """
    if not 0 <= right <= count or count < 1:
        expected = "counts with 0 <= right <= count and 1 <= count"
        raise ArgumentError(describe("right, count", expected, f"{right}, {count}"))
    share, z = right / count, NormalDist().inv_cdf((1 + level) / 2)
    shrink = 1 + z * z / count
    middle = (share + z * z / (2 * count)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return (middle - half if right else 0.0), (middle + half if right < count else 1.0)

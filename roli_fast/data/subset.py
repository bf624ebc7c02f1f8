"""A smaller split that stands for the whole one."""

from collections import Counter

import torch

from roli_fast.data.splits import ImageDataset
from roli_fast.errors import ArgumentError, describe
from roli_fast.seeds import derive_seed


def draw_subset(
    dataset: ImageDataset, count: int, *, seed: int = 0, balanced: bool = False
) -> ImageDataset:
    """`count` samples, drawn class by class; the same on every machine, in the order of the split.

    Each class has its share of the split, to the nearest sample, so that an accuracy on the subset
    is one on the split. A larger subset of the same seed holds every smaller one.

    Args:
        dataset: a split.
        count: number of samples, at most those there are.
        seed: another seed, another choice.
        balanced: all classes alike instead, as far as their samples go; on a split whose classes
            differ in size this measures another accuracy, the mean over the classes.

    Raises:
        ArgumentError: `count` is below 1 or above the number of samples.
    """
    if not 1 <= count <= len(dataset):
        raise ArgumentError(describe("count", f"an integer from 1 to {len(dataset)}", count))
    labels = dataset.labels.tolist()
    drawn = [derive_seed("subset", seed, dataset.name(index)) for index in range(len(labels))]
    size, place = Counter(labels), Counter[int]()
    turn: dict[int, float] = {}
    for index in sorted(range(len(labels)), key=drawn.__getitem__):
        label = labels[index]
        turn[index] = place[label] if balanced else (place[label] + 0.5) / size[label]
        place[label] += 1
    ranked = sorted(turn, key=lambda index: (turn[index], drawn[index]))
    return dataset.subset(torch.tensor(sorted(ranked[:count])))

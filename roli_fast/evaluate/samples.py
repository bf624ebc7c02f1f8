"""Which images are evaluated, in which order, and how they are cut into chunks."""

import torch
from torch import Tensor

from roli_fast.data import ImageDataset, Splits
from roli_fast.errors import ArgumentError, describe
from roli_fast.evaluate.assessment import Assessment
from roli_fast.seeds import derived_generator


def chosen(assessment: Assessment, splits: Splits, *, at_most: bool = False) -> ImageDataset:
    """The images of an evaluation, without augmentation, in the order of the evaluation.

    Raises:
        ArgumentError: more images than the split has.
    """
    dataset: ImageDataset = getattr(splits, assessment.split)
    count = assessment.images or len(dataset)
    if at_most:  # of a second data set, as many as of the first, or all
        count = min(count, len(dataset))
    if count > len(dataset):
        raise ArgumentError(
            describe("images", f"at most {len(dataset)}, the {assessment.split} split", count)
        )
    return dataset.plain().subset(mixed_order(dataset.labels, assessment.seed)[:count])


def mixed_order(labels: Tensor, seed: int) -> Tensor:
    """A random order of all samples in which every beginning has the proportions of the classes.

    Class by class the samples are shuffled and spread evenly over [0, 1), from a random offset; the
    order is that of their places. So the first n of it are a random stratified subset, and the
    first chunks of an evaluation already tell about the whole.

    Args:
        labels: int64 (N,).
        seed: of the order, which depends on it and on the labels alone.

    Returns:
        Positions, int64 (N,).
    """
    generator = derived_generator("evaluation order", seed)
    places = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero()[:, 0]
        offset = torch.rand(1, generator=generator, dtype=torch.float64)
        spread = (torch.arange(len(rows)) + offset) / len(rows)
        places[rows[torch.randperm(len(rows), generator=generator)]] = spread
    return places.argsort(stable=True)


def chunks(count: int, size: int) -> list[range]:
    """Positions of each chunk: a matter of the configuration, whatever carries it out."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]

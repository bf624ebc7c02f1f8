"""Subsets that stand for a split."""

from collections import Counter

import pytest
import torch

from roli_fast.data import ImageDataset, draw_subset
from roli_fast.data.pixels import ArrayPixels
from roli_fast.errors import ArgumentError


def split(*sizes: int) -> ImageDataset:
    """Class 0 has `sizes[0]` samples, ...; they are mixed, and ids are not places."""
    labels = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    pixels = ArrayPixels(torch.zeros(2 * len(labels), 3, 2, 2, dtype=torch.uint8))
    return ImageDataset(pixels, 2 * order, labels[order], 2)


def counts(dataset: ImageDataset) -> list[int]:
    found = Counter(dataset.labels.tolist())
    return [found[label] for label in range(max(found) + 1)]


def test_each_class_has_its_share() -> None:
    """60, 30 and 10 of 100: of 20 samples 12, 6 and 2."""
    assert counts(draw_subset(split(60, 30, 10), 20)) == [12, 6, 2]


@pytest.mark.parametrize("seed", range(4))
def test_shares_are_right_to_the_nearest_sample(seed: int) -> None:
    whole = split(57, 31, 12)
    for count in range(1, 101):
        found = Counter(draw_subset(whole, count, seed=seed).labels.tolist())
        for label, size in enumerate((57, 31, 12)):
            assert abs(found[label] - count * size / 100) <= 1


def test_balanced() -> None:
    """Alike while there are samples: the small class gives all of its 10."""
    assert counts(draw_subset(split(60, 30, 10), 24, balanced=True)) == [8, 8, 8]
    assert counts(draw_subset(split(60, 30, 10), 50, balanced=True)) == [20, 20, 10]
    even = split(20, 20, 20)
    both = [draw_subset(even, 30, balanced=flag) for flag in (False, True)]
    assert torch.equal(both[0].ids, both[1].ids)


@pytest.mark.parametrize("balanced", [False, True])
def test_a_larger_subset_holds_the_smaller_ones(balanced: bool) -> None:
    whole, before = split(23, 9, 31), set()
    for count in range(1, 64):
        ids = set(draw_subset(whole, count, balanced=balanced).ids.tolist())
        assert before < ids and len(ids) == count
        before = ids
    assert before == set(whole.ids.tolist())


def test_the_order_is_that_of_the_split_and_labels_follow() -> None:
    whole = split(20, 20)
    part = draw_subset(whole, 11)
    places = [whole.ids.tolist().index(sample) for sample in part.ids.tolist()]
    assert places == sorted(places)
    assert torch.equal(part.labels, whole.labels[places])


def test_the_seed_decides() -> None:
    whole, state = split(50, 50), torch.get_rng_state()
    first, again, other = (draw_subset(whole, 20, seed=seed).ids.tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("count", [0, -1, 41])
def test_too_few_or_too_many(count: int) -> None:
    with pytest.raises(ArgumentError, match="`count`: expected an integer from 1 to 40"):
        draw_subset(split(20, 20), count)

"""Splits refuse what would spoil a result; cuts are stratified and stable."""

from dataclasses import replace

import pytest
import torch

from roli_fast.data import Batch, ImageDataset, Splits
from roli_fast.data.digits import Digits
from roli_fast.data.pixels import ArrayPixels
from roli_fast.data.splits import scaled
from roli_fast.data.stratify import cap, cut
from roli_fast.data.transforms import evaluation_transform
from roli_fast.errors import ArgumentError, DataError

PIXELS = ArrayPixels(torch.arange(20 * 3 * 4, dtype=torch.uint8).view(20, 3, 2, 2))


def dataset(ids: list[int], labels: list[int]) -> ImageDataset:
    return ImageDataset(PIXELS, torch.tensor(ids), torch.tensor(labels), 2)


def splits(**changed: ImageDataset) -> Splits:
    parts = {
        "train": dataset([0, 1, 2], [0, 1, 1]),
        "val": dataset([3], [1]),
        "test": dataset([4, 5], [0, 1]),
    }
    return Splits(**{**parts, **changed}, classes=("cat", "dog"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"val": dataset([1], [1])}, r"`val`: expected no sample of train, got 1 samples .* \(1\)"),
        ({"test": dataset([3], [1])}, "`test`: expected no sample of val"),
        ({"val": dataset([3], [2])}, r"`val`: expected labels in \[0, 2\), got labels from 2 to 2"),
        ({"train": dataset([0, 1], [1, 1])}, r"every class, got none for 1 of 2 \('cat'\)"),
        ({"val": dataset([], []).subset([])}, "`val`: expected at least one sample"),
    ],
)
def test_broken_splits_are_refused(changed: dict[str, ImageDataset], message: str) -> None:
    with pytest.raises(DataError, match=message):
        splits(**changed)


def test_pixels_are_scaled_once_and_follow_the_id() -> None:
    x, y, ids = dataset([7, 2], [1, 0]).batch(torch.tensor([1, 0]))
    assert torch.equal(x, PIXELS.images[[2, 7]].float() / 255)
    assert (y.tolist(), ids.tolist()) == ([0, 1], [2, 7])
    part = dataset([7, 2, 9], [1, 0, 1]).subset([2, 0])
    assert part.ids.tolist() == [9, 7] and part.name(0) == "9"
    assert splits().summary() == "2 classes, train 3, val 1, test 2 images of 2x2"


def test_all_256_levels_are_the_nearest_numbers() -> None:
    """k / 255 rounded once, from fp64."""
    levels = torch.arange(256, dtype=torch.uint8)
    batch = scaled(Batch(levels, torch.empty(0), torch.empty(0)))
    assert torch.equal(batch.x, (levels.double() / 255).float())


def test_only_whole_images_in_memory_are_kept_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read where they are, and resizing rounds otherwise on a GPU."""
    copy = ArrayPixels(PIXELS.images)
    monkeypatch.setattr(ArrayPixels, "kept_on", lambda _self, _device: copy)
    device = torch.device("cuda")
    moved = splits().kept_on(device)
    assert all(part.pixels is copy for part in (moved.train, moved.val, moved.test))
    resized = replace(splits().val, prepare=evaluation_transform(2))
    kept = splits(val=resized).kept_on(device)
    assert kept.train.pixels is PIXELS and kept.val.pixels is PIXELS


@pytest.mark.parametrize("share", [0.05, 0.3, 0.95])
def test_cuts_are_stratified_and_lose_nothing(share: float) -> None:
    labels = torch.tensor([0] * 2 + [1] * 40 + [3] * 18)[torch.randperm(60)]
    pixels = ArrayPixels(torch.zeros(60, 3, 1, 1, dtype=torch.uint8))
    parts = cut(torch.arange(60), labels, pixels, "abcd", seed=0, shares={"test": share})
    assert sorted(torch.cat(list(parts.values())).tolist()) == list(range(60))
    for label, total in ((0, 2), (1, 40), (3, 18)):
        part = int((labels[parts["test"]] == label).sum())
        assert part == min(max(round(share * total), 1), total - 1)


def test_cuts_follow_the_seed_and_the_purpose() -> None:
    labels, rows = torch.zeros(20, dtype=torch.int64), torch.arange(20)

    def taken(purpose: str, seed: int) -> list[int]:
        return cut(rows, labels, PIXELS, "a", seed=seed, shares={purpose: 0.5})[purpose].tolist()

    assert taken("val", 0) == taken("val", 0)
    assert len({tuple(taken(p, s)) for p in ("val", "test") for s in (0, 1)}) == 4
    # a new sample moves no other in the order
    before = cap(rows[:19], labels, PIXELS, seed=0, most=8).tolist()
    after = cap(rows, labels, PIXELS, seed=0, most=8).tolist()
    assert len(set(before) - set(after)) <= 1


def test_classes_that_are_too_small_to_cut_are_named_with_their_counts() -> None:
    labels, shares = torch.tensor([0] * 9 + [2] * 2 + [3]), {"test": 0.2, "val": 0.1}
    got = "3 or more images a class, to cut 'test' and 'val', got 2 of 'rare', 1 of 'rarest'"
    with pytest.raises(DataError, match=got):
        cut(torch.arange(12), labels, PIXELS, ("a", "b", "rare", "rarest"), seed=0, shares=shares)


class TestDigits:
    def test_the_split_of_the_first_five_never_changes(self) -> None:
        splits = Digits(classes=(5, 6, 7, 8, 9)).load()
        assert [len(s) for s in (splits.train, splits.val, splits.test)] == [403, 134, 359]
        assert splits.classes == ("5", "6", "7", "8", "9")
        assert splits.test.ids[:8].tolist() == [7, 9, 17, 19, 26, 33, 34, 35]

    def test_eight_pixels_are_the_original_grey_values(self) -> None:
        from sklearn.datasets import load_digits

        images, digits = load_digits(return_X_y=True)
        raw = torch.tensor(images).view(-1, 8, 8)
        data = Digits(classes=(9, 0), image_size=8, augment=False).load().test
        x, y, ids = data.batch(torch.arange(50))
        expected = (raw[ids] * 255 / 16).round() / 255
        assert torch.equal(x, expected.float().unsqueeze(1).expand(-1, 3, -1, -1))
        assert y.tolist() == [(9, 0).index(digits[row]) for row in ids.tolist()]

    def test_augmentation_is_a_shift_of_one_pixel(self) -> None:
        train = Digits().load().train
        plain, shifted = (view.batch(torch.arange(40)).x for view in (train.plain(), train))
        padded = torch.nn.functional.pad(plain, [1] * 4)
        places = [padded[..., t : t + 16, left : left + 16] for t in range(3) for left in range(3)]
        matches = torch.stack([(place == shifted).flatten(1).all(1) for place in places])
        assert matches.any(0).all() and matches.any(1).sum() > 4

    def test_impossible_classes_are_refused(self) -> None:
        with pytest.raises(ArgumentError, match="`classes`: expected different digits"):
            Digits(classes=(3, 10))

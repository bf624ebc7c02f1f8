"""What every registered data set must do."""

import dataclasses
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_data import Build, tiny_source
from torch import Tensor

from roli_fast.data import DATASETS, Batch, ImageDataset, Splits, batches
from roli_fast.errors import ArgumentError

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture(params=DATASETS.names())
def build(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """A function of options that makes one of the registered data sets."""
    return tiny_source(request.param, tmp_path, monkeypatch)


def parts(splits: Splits) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
    return splits.train, splits.val, splits.test


def everything(dataset: ImageDataset) -> Batch:
    return dataset.batch(torch.arange(len(dataset)))


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(left, right) for left, right in zip(a, b, strict=True))


def epoch_of(dataset: ImageDataset, **options: object) -> Batch:
    """One epoch of batches, joined."""
    chosen = {"batch_size": 4, "seed": 7, "epoch": 3, "shuffle": True, **options}
    found = list(batches(dataset, **chosen))  # pyright: ignore
    return Batch(*(torch.cat(column) for column in zip(*found, strict=True)))


def by_id(batch: Batch) -> dict[int, Tensor]:
    return dict(zip(batch.ids.tolist(), batch.x, strict=True))


def test_splits_are_apart_and_every_class_is_trained(build: Build) -> None:
    splits = build().load()
    ids = [set(part.ids.tolist()) for part in parts(splits)]
    assert sum(map(len, ids)) == len(set.union(*ids)) == sum(map(len, parts(splits)))
    assert set(splits.train.labels.tolist()) == set(range(splits.num_classes))
    assert all(set(p.labels.tolist()) <= set(range(splits.num_classes)) for p in parts(splits))
    assert len(splits.classes) == len(set(splits.classes)) == splits.num_classes


def test_samples_have_the_promised_types_and_range(build: Build) -> None:
    source = build()
    for part in parts(source.load()):
        image, label, sample = part[0]
        assert image.shape == (3, source.image_size, source.image_size)
        assert image.dtype == torch.float32 and 0 <= image.min() and image.max() <= 1
        assert image.max() > 0.5  # scaled by 255 once, not twice
        assert (label, sample) == (int(part.labels[0]), int(part.ids[0]))
        assert type(label) is type(sample) is int
        whole = everything(part)
        assert torch.equal(part[-1][0], whole.x[-1]) and part[-1][1:] == (
            whole.y[-1],
            whole.ids[-1],
        )
        with pytest.raises(IndexError):
            part[len(part)]


def test_augmentation_depends_on_seed_epoch_and_sample_alone(build: Build) -> None:
    train = build().load().train
    reference = by_id(epoch_of(train))
    for options in ({"batch_size": 1}, {"batch_size": 7}, {"shuffle": False}):
        other = by_id(epoch_of(train, **options))
        assert all(torch.equal(reference[sample], other[sample]) for sample in reference)
    tail = train.subset(range(len(train) - 3, len(train)))
    assert all(torch.equal(reference[s], x) for s, x in by_id(epoch_of(tail)).items())
    for options in ({"epoch": 4}, {"seed": 8}):
        other = by_id(epoch_of(train, **options))
        assert any(not torch.equal(reference[sample], other[sample]) for sample in reference)


def test_workers_change_nothing(build: Build) -> None:
    train = build().load().train.subset(range(6))
    assert same(epoch_of(train), epoch_of(train, workers=2))


def test_evaluation_views_are_not_augmented(build: Build) -> None:
    splits = build().load()
    for part in (splits.train.plain(), splits.val, splits.test):
        assert same(everything(part.at_epoch(0)), everything(part.at_epoch(1, seed=5)))
    assert same(everything(splits.train.plain()), everything(build(augment=False).load().train))


def test_global_random_states_are_neither_used_nor_moved(build: Build) -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()
        train = build().load().train
        found.append(epoch_of(train))
        assert same(everything(train), everything(pickle.loads(pickle.dumps(train))))
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1:] == (repr(np.random.get_state()), random.getstate())
    assert same(*found)


def test_max_per_class_nests(build: Build) -> None:
    full, two, one = (build(max_per_class=most).load() for most in (None, 2, 1))
    for whole, pair, single in zip(parts(full), parts(two), parts(one), strict=True):
        assert set(single.ids.tolist()) <= set(pair.ids.tolist()) <= set(whole.ids.tolist())
        assert torch.equal(single.labels.unique(), whole.labels.unique())
        counts = torch.bincount(whole.labels)
        assert torch.equal(torch.bincount(pair.labels), counts.clamp(max=2))
        assert len(single) == int((counts > 0).sum())


def test_one_channel_is_the_grey_of_three(build: Build) -> None:
    grey, colour = (everything(build(channels=c, augment=False).load().test) for c in (1, 3))
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    assert grey.x.shape == colour.x[:, :1].shape and torch.equal(grey.ids, colour.ids)
    assert (grey.x - (colour.x * luma).sum(1, keepdim=True)).abs().max() < 2 / 255
    assert build(channels=1).load().train[0][0].shape[0] == 1  # augmented too


def test_sources_are_frozen_and_checked(build: Build) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        build().seed = 1  # pyright: ignore
    for option in ("image_size", "max_per_class"):
        with pytest.raises(ArgumentError, match=f"`{option}`: expected an integer >= 1, got 0"):
            build(**{option: 0})
    with pytest.raises(ArgumentError, match="`channels`: expected 1 or 3, got 2"):
        build(channels=2)

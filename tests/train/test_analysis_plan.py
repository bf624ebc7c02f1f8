"""How much the light analysis looks at: by hand, from the configuration alone."""

import pytest
from analysed_run import analysed

from roli_fast.data import Splits
from roli_fast.train import analysis_plan
from roli_fast.train.analysis_plan import first_images, plan


@pytest.fixture(scope="module")
def splits() -> Splits:
    return analysed("--data.max_per_class=null").data.load()


def test_a_twentieth_of_the_training(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """RoLI, PGD-1 in both stages: 2 passes of the attack and 3 of the update, 1 + 2 epochs. Looks
    of PGD-2: 4 + 2 passes, at 3 models in two splits and at the test images of one; one pass more
    a stage for the images that are held; five searches of the curve."""
    monkeypatch.setattr(analysis_plan, "LEAST", 1)
    experiment = analysed("--finetune.epochs=200", "--analysis_images=1000")
    training = 201 * len(splits.train) * (2 + 3)
    each = 7 * 6 + 2 + 5 * 4
    assert plan(experiment, splits).points == int(0.05 * training / each)


def test_at_least_and_at_most(splits: Splits) -> None:
    few = plan(analysed("--analysis_images=1000"), splits)
    assert (few.points, few.calibration) == (64, 256)
    capped = plan(analysed("--analysis_images=70"), splits)
    assert (capped.points, capped.calibration) == (64, 70)
    asked = plan(analysed(), splits, 500)
    assert (asked.points, asked.calibration) == (500, 500)


def test_large_images_are_fewer(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attacked ones are kept in memory."""
    monkeypatch.setattr(analysis_plan, "MOST_BYTES", 10 * 16 * 16 * 3 * 4)
    assert plan(analysed(), splits).points == 10


def test_a_dear_attack_makes_way(splits: Splits) -> None:
    cheap = plan(analysed("--test=autoattack"), splits)
    assert cheap.described == {"label": "pgd-1", "norm": "linf", "eps": 0.04}
    assert "autoattack" in cheap.notes[0] and "take too long" in cheap.notes[0]
    own = plan(analysed(), splits)
    assert own.described["label"] == "pgd-2"
    assert own.notes == ()
    long = plan(analysed("--test.steps=300"), splits)
    assert long.attack.label == "pgd-1" and "take too long" in long.notes[0]


def test_several_balls_at_once_make_way(splits: Splits) -> None:
    found = plan(analysed("--test=multi_apgd"), splits)
    assert found.attack.label == "pgd-1" and "not one search in one ball" in found.notes[0]


def test_of_several_norms_it_is_the_first(splits: Splits) -> None:
    several = analysed("--threat.norm=l2", "--threat.other_norms=linf", "--threat.other_eps=0.1")
    assert plan(several, splits).described == {"label": "pgd-2", "norm": "l2", "eps": 0.04}


def test_the_first_images_are_one_order_without_augmentation(splits: Splits) -> None:
    some, more = first_images(splits.train, 9), first_images(splits.train, 20)
    assert some.ids.tolist() == more.ids.tolist()[:9]
    assert first_images(splits.train, 20, 9).ids.tolist() == more.ids.tolist()[9:]
    assert sorted(some.labels.tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert some.augment is None
    assert len(first_images(splits.val, 10**6)) == len(splits.val)

"""Means, spreads and paired tests of the final table, worked out by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest

from roli_fast.data import Splits
from roli_fast.train.cli import parse
from roli_fast.train.summary import summarise, table


def outcome(seed: int, clean: str, **robust: str) -> dict[str, Any]:
    """Of one seed's stage and test: flags of the clean images, and of each attack."""
    stage = {
        "name": "finetune",
        "epochs": 2,
        "best_epoch": 1,
        "best_validation_accuracy": 0.5,
        "trainable_parameters": 10,
        "train_images": 100,
        "train_seconds": 2.0 + seed,
        "train_images_per_second": 50.0 + 10 * seed,
        "data_wait_share": 0.01 * seed,
    }
    flags = {name.replace("_", "-"): text for name, text in robust.items()}
    shares = {name: text.count("1") / len(text) for name, text in (flags | {"": clean}).items()}
    test = {"images": len(clean), "clean_accuracy": shares.pop(""), "robust_accuracy": shares}
    test |= {"clean_flags": clean, "robust_flags": flags}
    return {"seed": seed, "stages": [stage], "test": test}


def summary(outcomes: dict[str, list[dict[str, Any]]], seeds: str) -> dict[str, Any]:
    experiment = parse(["--seeds", seeds]).experiment
    return summarise(experiment, digits(outcomes), outcomes, [])


def digits(outcomes: dict[str, list[dict[str, Any]]]) -> Splits:
    """With as many test images as the outcomes have flags."""
    splits = parse([]).experiment.data.load()
    count = len(next(iter(outcomes.values()))[0]["test"]["clean_flags"])
    return replace(splits, test=splits.test.subset(range(count)))


def test_every_class_worst_first_and_a_model_that_has_learnt_nothing() -> None:
    """Means over two seeds; the second seed is right for one class alone."""
    splits = parse([]).experiment.data.load()
    labels = splits.test.labels[:40]
    last = int(labels[-1])
    only = "".join("1" if y == last else "0" for y in labels.tolist())
    runs = [outcome(0, "1" * 40, pgd_10="1" * 20 + "0" * 20), outcome(1, only, pgd_10="0" * 40)]
    result = summary({"roli": runs}, "0,1")
    entries = result["methods"]["roli"]["test"]["per_class"]
    for entry in entries:
        own = labels == entry["label"]
        assert entry["class"] == splits.classes[entry["label"]]
        assert entry["images"] == int(own.sum())
        right = 1 if entry["label"] == last else 0.5
        robust = float(own[:20].sum()) / float(own.sum()) / 2
        assert entry["accuracy"] == {"clean": right, "pgd-10": pytest.approx(robust)}
    shares = [entry["accuracy"]["pgd-10"] for entry in entries]
    assert shares == sorted(shares)
    assert result["guessing"] == int(labels.bincount().max()) / 40
    (warning,) = result["warnings"]
    assert warning.startswith("roli, seed 1: the model has collapsed")
    assert warning in table(result) and f"Worst class of roli: '{entries[0]['class']}'" in table(
        result
    )


def test_one_seed_uses_the_test_images() -> None:
    """6 images only roli gets right, 1 only ranli: two-sided binomial p = 2 * 8 / 128."""
    roli = outcome(0, "1111111111", pgd_10="1111110010")
    ranli = outcome(0, "1111111110", pgd_10="0000000110")
    result = summary({"roli": [roli], "ranli": [ranli]}, "0")
    entry = result["comparisons"][0]
    assert entry["test"].startswith("McNemar")
    assert entry["difference"] == pytest.approx(0.7 - 0.2)
    assert entry["p_value"] == pytest.approx(2 * (1 + 7) / 2**7)
    test = result["methods"]["roli"]["test"]
    assert test["robust_accuracy"] == {"pgd-10": pytest.approx(0.7)}
    assert test["standard_error"]["pgd-10"] == pytest.approx(math.sqrt(0.7 * 0.3 / 10))
    assert "sd" not in test


def test_several_seeds_use_a_paired_t_test() -> None:
    """Gaps 0.2, 0.4, 0.6: mean 0.4, sd 0.2, t = 0.4 / (0.2 / sqrt 3) = 3.4641 with 2 degrees."""
    a = [outcome(s, "1" * 10, pgd_10="1" * n + "0" * (10 - n)) for s, n in enumerate((4, 6, 8))]
    b = [outcome(s, "1" * 10, pgd_10="1" * 2 + "0" * 8) for s in range(3)]
    result = summary({"roli": a, "ranli": b}, "0,1,2")
    entry = result["comparisons"][0]
    t = 0.4 / (0.2 / math.sqrt(3))
    p = 1 - t / math.sqrt(t**2 + 2)  # closed form of Student's t with two degrees of freedom
    assert entry["p_value"] == pytest.approx(p)
    test = result["methods"]["roli"]["test"]
    assert test["robust_accuracy"]["pgd-10"] == pytest.approx(0.6)
    assert test["sd"]["pgd-10"] == pytest.approx(0.2)
    stage = result["methods"]["roli"]["stages"][0]
    assert stage["train_images_per_second"] == pytest.approx(60.0)
    assert stage["data_wait_share"] == pytest.approx(0.01)
    assert len(result["methods"]["roli"]["per_seed"]) == 3


@pytest.mark.parametrize("flags", ["10", "00"])
def test_equal_gaps_have_no_p_value(flags: str) -> None:
    """Two seeds with the same gap say nothing of its spread: t is 0 / 0 or infinite."""
    two = {"roli": [outcome(s, "11", pgd_10="10") for s in (0, 1)]}
    two["ranli"] = [outcome(s, "11", pgd_10=flags) for s in (0, 1)]
    result = summary(two, "0,1")
    assert result["comparisons"][0]["p_value"] is None
    assert "p = - (paired t" in table(result)


def test_the_table_shows_size_spread_and_note() -> None:
    text = table(summary({"roli": [outcome(0, "1110", pgd_10="1000")]}, "0"))
    shown = ("75.0 +- 21.7 %", "25.0 +- 21.7 %", "4 test images, linf eps 0.08", "standard error")
    for words in (*shown, "demo, not evidence", "finetune 2"):
        assert words in text
    experiment = parse(["--test=multi_apgd", "--test.norms=linf,l1", "--test.eps=0.1,3"]).experiment
    outcomes = {"roli": [outcome(0, "1", pgd_10="1")]}
    text = table(summarise(experiment, digits(outcomes), outcomes, []))
    assert "linf eps 0.1, l1 eps 3; +- is" in text


def test_several_norms_are_compared_by_their_union() -> None:
    """In linf both are alike; in the union roli alone has 5 images, ranli alone 1."""
    roli = outcome(0, "1" * 8, linf="11110000", l2="11111110", union="11111000")
    ranli = outcome(0, "1" * 8, linf="11110000", l2="00000001", union="00000001")
    flags = ["--threat.other_norms=l2", "--threat.other_eps=0.5"]
    experiment = parse(["--seeds", "0", *flags]).experiment
    outcomes = {"roli": [roli], "ranli": [ranli]}
    result = summarise(experiment, digits(outcomes), outcomes, [])
    (entry,) = result["comparisons"]
    assert entry["attack"] == "union" and entry["difference"] == pytest.approx(4 / 8)
    assert entry["p_value"] == pytest.approx(2 * (1 + 6) / 2**6)
    assert result["attack"]["eps"] is None and result["threat"]["eps"] == 0.08
    text = table(result)
    first, _, second = text.splitlines()[:3]
    assert first.split()[2:6] == ["clean", "linf", "l2", "union"]
    assert "62.5 +- 17.1 %" in second and "50.0 +- 17.7 %" in second
    assert "linf eps 0.08, l2 eps 0.5" in text

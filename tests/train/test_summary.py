"""Means, spreads and paired tests of the final table, worked out by hand."""

import math
from typing import Any

import pytest

from roli_fast.train.cli import parse
from roli_fast.train.summary import summarise, table

DATA = ["--data.image_size", "8"]


def outcome(seed: int, clean: str, robust: str) -> dict[str, Any]:
    def share(flags: str) -> float:
        return flags.count("1") / len(flags)

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
    return {
        "seed": seed,
        "stages": [stage],
        "test": {
            "images": len(clean),
            "clean_accuracy": share(clean),
            "robust_accuracy": {"pgd-10": share(robust)},
            "clean_flags": clean,
            "robust_flags": {"pgd-10": robust},
        },
    }


def summary(outcomes: dict[str, list[dict[str, Any]]], seeds: str) -> dict[str, Any]:
    experiment = parse(["--seeds", seeds]).experiment
    return summarise(experiment, experiment.data.load(), outcomes, [])


def test_one_seed_uses_the_test_images() -> None:
    """6 images only roli gets right, 1 only ranli: two-sided binomial p = 2 * 8 / 128."""
    roli = outcome(0, "1111111111", "1111110010")
    ranli = outcome(0, "1111111110", "0000000110")
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
    a = [outcome(s, "1" * 10, "1" * n + "0" * (10 - n)) for s, n in enumerate((4, 6, 8))]
    b = [outcome(s, "1" * 10, "1" * 2 + "0" * 8) for s in range(3)]
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


def test_equal_methods_are_not_told_apart() -> None:
    one = {"roli": [outcome(0, "11", "10")], "ranli": [outcome(0, "11", "10")]}
    assert summary(one, "0")["comparisons"][0]["p_value"] == 1.0


@pytest.mark.parametrize("flags", ["10", "00"])
def test_equal_gaps_have_no_p_value(flags: str) -> None:
    """Two seeds with the same gap say nothing of its spread: t is 0 / 0 or infinite."""
    two = {"roli": [outcome(s, "11", "10") for s in (0, 1)]}
    two["ranli"] = [outcome(s, "11", flags) for s in (0, 1)]
    result = summary(two, "0,1")
    assert result["comparisons"][0]["p_value"] is None
    assert "p = - (paired t" in table(result)


def test_the_table_names_the_attack_that_was_tested() -> None:
    experiment = parse(["--test.eps", "0.2"]).experiment
    outcomes = {"roli": [outcome(0, "1110", "1000")]}
    text = table(summarise(experiment, experiment.data.load(), outcomes, []))
    assert "linf eps 0.2" in text


def test_the_table_shows_size_spread_and_note() -> None:
    text = table(summary({"roli": [outcome(0, "1110", "1000")]}, "0"))
    assert "75.0 +- 21.7 %" in text
    assert "25.0 +- 21.7 %" in text
    assert "359 test images" in text
    assert "standard error" in text
    assert "demo, not evidence" in text
    assert "finetune 2" in text

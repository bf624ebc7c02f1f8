"""Attacks that a model was not trained against, in the report beside the norms."""

from pathlib import Path

import pytest
import torch
from evaluated_models import Nearest
from test_assess import assess, digits

from roli_fast.attacks import PGD
from roli_fast.evaluate import read_report
from roli_fast.evaluate.report import table
from roli_fast.evaluate.shares import to_flags
from roli_fast.seeds import derived_generator

MORE = ["--attacks=pgd-3", "--unseen=pgd-4@l1=6,square-15", "--corruptions=contrast"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("unseen") / "out"
    assess(where, *MORE)
    return where


def test_every_unseen_attack_is_made_on_all_images_that_are_right(folder: Path) -> None:
    report = read_report(folder)
    unseen = report.tree["unseen"]
    balls = [(one["attack"], one["norm"], one["eps"]) for one in unseen["attacks"]]
    assert balls == [("pgd-4", "l1", 6.0), ("square-15", "linf", 0.06), ("square-15", "l2", 0.5)]
    right = int(report.clean.sum())
    assert [one["searches"][0]["attacked"] for one in unseen["attacks"]] == [right] * 3
    data, model = digits(), Nearest().eval()
    rows = torch.tensor([data.ids.tolist().index(i) for i in report.ids.tolist()])
    x, y, ids = (tensor[report.clean] for tensor in data.batch(rows))
    generator = derived_generator("evaluation", 0, "unseen pgd-4 l1 6", "pgd-4")
    x_adv = PGD("l1", 6.0, None, 4)(model, x, y, generator, sample_ids=ids)
    own = report.clean.clone()
    own[report.clean] = model(x_adv).argmax(1) == y
    assert torch.equal(to_flags(unseen["attacks"][0]["robust"]["flags"]), own)


def test_the_norms_are_what_they_are_without_them(folder: Path, tmp_path: Path) -> None:
    alone = assess(tmp_path / "out", "--attacks=pgd-3")
    together = read_report(folder).tree
    assert alone["unseen"] is None
    for name in ("linf", "l2"):
        assert alone["norms"][name]["robust"] == together["norms"][name]["robust"]
    assert alone["union"] == together["union"]


def test_means_and_unions_are_those_of_the_flags(folder: Path) -> None:
    report = read_report(folder)
    unseen, shifts = report.tree["unseen"], report.tree["shifts"]
    flags = [to_flags(one["robust"]["flags"]) for one in unseen["attacks"]]
    together = flags[0] & flags[1] & flags[2]
    shares = [flag.double().mean().item() for flag in flags]
    assert unseen["mean_accuracy"] == pytest.approx(sum(shares) / 3)
    assert torch.equal(to_flags(unseen["union"]["flags"]), together)
    assert 0 < int((together & report.union).sum()) < int(report.union.sum())
    assert torch.equal(to_flags(unseen["union_with_norms"]["flags"]), together & report.union)
    seen = together & report.union
    for severity in "12345":
        seen = seen & to_flags(shifts["corruptions"]["contrast"][severity]["flags"])
    assert torch.equal(to_flags(unseen["union_with_corruptions"]["flags"]), seen)


def test_the_table_has_them(folder: Path) -> None:
    text = table(read_report(folder).tree)
    for words in ("unseen l1 pgd-4", "unseen l2 square-15", "unseen, mean", "unseen, union"):
        assert words in text
    assert "norms and unseen, union" in text and "norms, unseen, corruptions, union" in text


def test_a_resume_and_saved_images_know_them(folder: Path, tmp_path: Path) -> None:
    whole = read_report(folder).tree["unseen"]
    out = tmp_path / "out"
    assess(out, *MORE, "--save_adversarial=true")
    (out / "evaluation.json").unlink()
    (out / "chunks/00001.json").unlink()
    report = assess(out, *MORE, "--save_adversarial=true", resume=True)
    assert report["unseen"]["union_with_corruptions"] == whole["union_with_corruptions"]

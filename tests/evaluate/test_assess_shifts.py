"""Accuracy on corrupted images and on a second data set, beside the robust one."""

from pathlib import Path

import pytest
import torch
from evaluated_models import Nearest
from test_assess import FLAGS, assess

from roli_fast.data import ImageDataset
from roli_fast.data.corruptions import CORRUPTIONS, corrupted
from roli_fast.errors import RoliFastError, RunDirectoryError
from roli_fast.evaluate.cli import parse
from roli_fast.evaluate.prepare import chosen
from roli_fast.evaluate.report import table

MORE = ["--corruptions=contrast,gaussian_noise", "--ood=digits", "--ood.image_size=8"]
MORE += ["--ood.seed=5", "--attacks=pgd-1"]


def answers(images: ImageDataset, ids: list[int]) -> str:
    """What the model says about the images with these ids, one after another."""
    x, y, own = images.batch(torch.arange(len(images)))
    right = dict(zip(own.tolist(), (Nearest().eval()(x).argmax(1) == y).tolist(), strict=True))
    return "".join("01"[right[i]] for i in ids)


def test_flags_are_those_of_the_images_and_a_resume_measures_only_what_is_missing(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    report = assess(out, *MORE)
    shifts = report["shifts"]
    assessment = parse([*FLAGS, *MORE]).assessment
    same = chosen(assessment, assessment.data.load())
    for kind, severity in (("contrast", 5), ("gaussian_noise", 2)):
        right = answers(corrupted(same, kind, severity, seed=0), report["ids"])
        entry = shifts["corruptions"][kind][str(severity)]
        assert entry["cost"]["forward_images"] == 90 and entry["cost"]["backward_images"] == 0
        assert entry["flags"] == right and entry["accuracy"] == right.count("1") / 90
    assert assessment.ood is not None
    ids = shifts["ood"]["ids"]
    assert ids == sorted(ids)
    second = chosen(assessment, assessment.ood.load(), at_most=True)
    assert shifts["ood"]["flags"] == answers(second, ids)
    assert set(shifts["corruptions"]["contrast"]) == set("12345")
    assert shifts["ood"]["images"] == 90 and shifts["ood"]["accuracy"] > 0.7
    assert "gaussian_noise, mean of 5" in table(report) and "second data set" in table(report)
    kept = (out / "chunks/00000.json").stat().st_mtime_ns
    for name in ("00001", "ood-00000"):
        (out / f"chunks/{name}.json").unlink()
    assert assess(out, *MORE, resume=True)["shifts"] == shifts
    assert (out / "chunks/00000.json").stat().st_mtime_ns == kept
    (out / "chunks/ood-00001.json").write_text("{}")
    with pytest.raises(RunDirectoryError, match=r"ood-00001\.json"):
        assess(out, *MORE, resume=True)


def test_names_of_corruptions() -> None:
    assert parse([*FLAGS, "--corruptions=all"]).assessment.corruptions == CORRUPTIONS.names()
    assert len(CORRUPTIONS.names()) == 15
    for wrong in ("rain", "fog,fog"):
        with pytest.raises(RoliFastError, match="`corruptions`.*fog"):
            parse([*FLAGS, f"--corruptions={wrong}"])


def test_no_shift_is_measured_unless_asked_for(tmp_path: Path) -> None:
    assert assess(tmp_path / "out", "--attacks=pgd-1")["shifts"] is None

"""Robustness curves of an evaluation: flags, files, the picture, and what is refused."""

from pathlib import Path

import pytest
import torch
from evaluated_models import Nearest
from test_assess import FLAGS, assess

from roli_fast.attacks import PGD
from roli_fast.data import Batch
from roli_fast.errors import RoliFastError
from roli_fast.evaluate import driver, evaluate
from roli_fast.evaluate.cli import parse
from roli_fast.evaluate.prepare import chosen
from roli_fast.evaluate.report import table

RADII = (0.02, 0.06, 0.12)
MORE = ["--attacks=pgd-3,fgsm", "--norm=linf", "--eps=0.05", "--curve=0.02,0.06,0.12"]
PIECE = "chunks/00001.json"


def expected(dataset_flags: list[str], radius: float) -> list[bool]:
    """What `evaluate` finds at one radius alone, in the order of the data's ids."""
    assessment = parse([*FLAGS, *dataset_flags]).assessment
    images = chosen(assessment, assessment.data.load())
    batch = images.batch(images.ids.argsort())
    attack = PGD(norm="linf", eps=radius, step_size=None, steps=3)
    found = evaluate(Nearest(), [Batch(batch.x, batch.y, batch.ids)], [attack])
    return found.robust["pgd-3"].tolist()


def test_points_are_those_of_single_radii_and_a_resume_measures_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    report = assess(out, *MORE)
    pgd, fgsm = report["curves"]
    assert (pgd["attack"], fgsm["attack"]) == ("pgd-3", "fgsm")
    assert [point["eps"] for point in pgd["points"]] == [0, *RADII]
    assert pgd["flags"][0] == report["clean"]["flags"]
    right = torch.tensor([letter == "1" for letter in pgd["flags"][0]])
    for radius, text in zip(RADII, pgd["flags"][1:], strict=True):
        right &= torch.tensor(expected(MORE, radius))
        assert text == "".join("01"[flag] for flag in right.tolist())
    assert pgd["cost"]["forward_images"] > pgd["cost"]["backward_images"] > 90
    shares = [point["accuracy"] for point in pgd["points"]]
    assert shares[0] > 0.8 > shares[-1] and shares == sorted(shares, reverse=True)
    assert "curve pgd-3" in table(report)
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")

    kept = (out / PIECE).stat().st_mtime_ns
    (out / "chunks/00000.json").unlink()
    monkeypatch.setattr(driver, "plot_curves", None)  # a picture that fails costs no report
    assert assess(out, *MORE, resume=True)["curves"] == report["curves"]
    assert (out / PIECE).stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--curve=0.2,0.1", *MORE[1:3]], "`curve`.*ascending"),
        (["--curve=0,0.1", *MORE[1:3]], "`curve`.*> 0"),
        (["--curve=0.1"], "`curve`.*one norm"),
    ],
)
def test_curves_that_cannot_be_made(flags: list[str], words: str) -> None:
    with pytest.raises(RoliFastError, match=words):
        parse([*FLAGS, "--attacks=pgd-3", *flags])


def test_no_curve_unless_asked_for(tmp_path: Path) -> None:
    assert assess(tmp_path / "out", "--attacks=pgd-1")["curves"] is None
    assert not (tmp_path / "out/curve.png").exists()

"""Evaluations whose flags are known another way."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluated_models import SIZE, Nearest
from safetensors.torch import load_file

from roli_fast.attacks import APGD, PGD, Attack
from roli_fast.data import DATASETS, ImageDataset
from roli_fast.errors import RoliFastError
from roli_fast.evaluate import read_report
from roli_fast.evaluate.__main__ import main
from roli_fast.evaluate.cli import parse
from roli_fast.evaluate.driver import run
from roli_fast.evaluate.prepare import chosen, mixed_order
from roli_fast.evaluate.runner import chunks
from roli_fast.seeds import derived_generator

FLAGS = (
    f"--model evaluated_models:nearest --data digits --data.image_size {SIZE} --threads 1 "
    "--attacks pgd-3,apgd-ce-6 --norm linf,l2 --eps 0.06,0.5 --images 90 --chunk 40 --batch_size 16"
).split()

EPS = {"linf": 0.06, "l2": 0.5}


def assess(folder: Path, *more: str, resume: bool = False) -> dict[str, Any]:
    report = run(parse([*FLAGS, *more]).assessment, folder, resume=resume, quiet=True)
    assert report is not None
    return report


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "out"
    assess(folder, "--save_adversarial", "true")
    return folder


def digits() -> ImageDataset:
    return DATASETS["digits"](image_size=SIZE).load().test.plain()


def test_flags_are_those_of_the_attacks_called_by_hand(straight: Path) -> None:
    report, data, model = read_report(straight), digits(), Nearest().eval()
    rows = torch.tensor([data.ids.tolist().index(i) for i in report.ids.tolist()])
    x, y, ids = data.batch(rows)
    clean = model(x).argmax(1) == y
    assert torch.equal(report.clean, clean) and 0.7 < clean.float().mean() < 1
    assert report.tree["labels"] == y.tolist()
    for norm, eps in EPS.items():
        robust, first = clean.clone(), True
        attacks: Sequence[Attack] = (
            PGD(norm=norm, eps=eps, step_size=None, steps=3),
            APGD(norm=norm, eps=eps, steps=6),
        )
        for attack, entry in zip(attacks, report.tree["norms"][norm]["searches"], strict=True):
            generator = derived_generator("evaluation", 0, norm, attack.label)
            x_adv = attack(model, x[robust], y[robust], generator, sample_ids=ids[robust])
            stays = model(x_adv).argmax(1) == y[robust]
            assert entry["part"] == attack.label
            assert (entry["attacked"], entry["fooled"]) == (int(robust.sum()), int((~stays).sum()))
            assert not first or entry["fooled"] > 5
            robust[robust.clone()] = stays
            first = False
        assert torch.equal(report.robust[norm], robust)
    assert torch.equal(report.union, report.robust["linf"] & report.robust["l2"])


def test_saved_images_fool_the_model_and_lie_in_the_ball(straight: Path) -> None:
    report, saved, data = (
        read_report(straight),
        load_file(straight / "adversarial.safetensors"),
        digits(),
    )
    assert torch.equal(saved["ids"], report.ids)
    rows = torch.tensor([data.ids.tolist().index(i) for i in report.ids.tolist()])
    x, y, _ = data.batch(rows)
    assert torch.equal(saved["labels"], y)
    model = Nearest().eval()
    for norm, order in (("linf", torch.inf), ("l2", 2.0)):
        x_adv, robust = saved[norm], report.robust[norm]
        right = model(x_adv).argmax(1) == y
        assert torch.equal(right, robust)
        assert torch.equal(x_adv[robust], x[robust])
        length = (x_adv.double() - x.double()).flatten(1).norm(order, dim=1)
        assert bool((length <= EPS[norm]).all()) and bool(
            (length[~robust & report.clean] > 0).all()
        )
        assert bool((x_adv >= 0).all() and (x_adv <= 1).all())


def test_the_report_counts_what_the_flags_say(straight: Path) -> None:
    tree = read_report(straight).tree
    for entry in (tree["clean"], tree["union"], *(n["robust"] for n in tree["norms"].values())):
        assert entry["accuracy"] == entry["flags"].count("1") / 90
        low, high = entry["interval_95"]
        assert low < entry["accuracy"] < high
    assert tree["images"] == 90 and tree["images_in_split"] == len(digits())
    searches = [s for n in tree["norms"].values() for s in n["searches"]]
    pgd, apgd = searches[0], searches[1]
    assert pgd["cost"]["backward_images"] == 3 * pgd["attacked"]
    assert pgd["cost"]["forward_images"] == (3 + 1) * pgd["attacked"]  # and the last look
    assert apgd["attacked"] == pgd["attacked"] - pgd["fooled"]
    assert tree["cost"]["forward_images"] >= 90 + sum(s["cost"]["forward_images"] for s in searches)
    assert tree["environment"]["packages"]["torch"] and tree["model"]["sha256"]


@pytest.mark.parametrize("more", [["--chunk=7"], ["--chunk=1000"], ["--batch_size=90"]], ids=str)
def test_neither_chunks_nor_batches_change_a_flag(
    straight: Path, tmp_path: Path, more: list[str]
) -> None:
    assess(tmp_path / "out", *more)
    assert_same_flags(straight, tmp_path / "out")


def assert_same_flags(first: Path, second: Path) -> None:
    a, b = read_report(first), read_report(second)
    assert torch.equal(a.ids, b.ids) and torch.equal(a.clean, b.clean)
    assert torch.equal(a.union, b.union)
    for norm in EPS:
        assert torch.equal(a.robust[norm], b.robust[norm])
        pairs = zip(
            a.tree["norms"][norm]["searches"], b.tree["norms"][norm]["searches"], strict=True
        )
        assert all(x["fooled_flags"] == y["fooled_flags"] for x, y in pairs)


def test_union_only_attacks_what_is_left(straight: Path, tmp_path: Path) -> None:
    tree = assess(tmp_path / "out", "--union_only", "true")
    whole = read_report(straight).tree
    assert tree["union"]["flags"] == whole["union"]["flags"]
    assert tree["norms"]["l2"]["robust"] is None
    left = whole["norms"]["linf"]["robust"]["flags"].count("1")
    assert tree["norms"]["l2"]["searches"][0]["attacked"] == left
    assert read_report(tmp_path / "out").robust == {}


def test_another_seed_takes_other_images(straight: Path, tmp_path: Path) -> None:
    assess(tmp_path / "out", "--seed=1")
    assert not torch.equal(read_report(straight).ids, read_report(tmp_path / "out").ids)


def test_what_a_short_search_found_holds_in_full_precision(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    tree = assess(folder, "--search_dtype=bfloat16", "--save_adversarial=true", "--images=60")
    saved, model = load_file(folder / "adversarial.safetensors"), Nearest().eval()
    for norm in EPS:
        right = model(saved[norm]).argmax(1) == saved["labels"]
        assert torch.equal(right, read_report(folder).robust[norm])
    assert tree["search_dtype"] == "bfloat16" and isinstance(tree["lost"], int)


def test_a_larger_choice_holds_the_smaller_in_the_proportions_of_the_classes() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    order = mixed_order(labels, seed=0)
    assert sorted(order.tolist()) == list(range(100))
    for count in (10, 20, 50, 70):
        found = torch.bincount(labels[order[:count]], minlength=3)
        wanted = torch.tensor([0.6, 0.3, 0.1]) * count
        assert bool(((found - wanted).abs() <= 1).all()), (count, found)
    assert not torch.equal(order, mixed_order(labels, seed=1))
    assessment = parse(FLAGS).assessment
    splits = assessment.data.load()
    some, more = (chosen(parse([*FLAGS, f"--images={n}"]).assessment, splits) for n in (30, 60))
    assert set(some.ids.tolist()) < set(more.ids.tolist())


def test_chunks_cover_every_image_once() -> None:
    assert [list(part) for part in chunks(5, 2)] == [[0, 1], [2, 3], [4]]


def test_the_table_and_the_exit_status(straight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(straight), "--resume"]) == 0
    printed = capsys.readouterr().out
    report = read_report(straight).tree
    assert f"{100 * report['union']['accuracy']:.1f} %" in printed
    for words in ("linf pgd-3", "l2 apgd-ce-6", "95 % interval", "90 of the", "chosen at random"):
        assert words in printed


def test_an_unreadable_report_is_told(tmp_path: Path) -> None:
    for text in ("{", "[]", json.dumps({"format": 99})):
        (tmp_path / "evaluation.json").write_text(text)
        with pytest.raises(RoliFastError, match=r"evaluation\.json"):
            read_report(tmp_path)
    with pytest.raises(RoliFastError, match="--resume"):
        read_report(tmp_path / "none")

"""Evaluations whose flags are known another way."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluated_models import FLAGS, SIZE, Nearest, assert_same_flags, assess
from PIL import Image
from safetensors.torch import load_file

from roli_fast.attacks import APGD, PGD, Attack, Fog
from roli_fast.data import DATASETS, Batch, ImageDataset
from roli_fast.data.corruptions import corrupted
from roli_fast.engine import InputGradient
from roli_fast.errors import OutOfMemoryError, RoliFastError
from roli_fast.evaluate import read_report, robustness_curve
from roli_fast.evaluate import run as driver
from roli_fast.evaluate.__main__ import parse
from roli_fast.evaluate.dataset import mixed_order
from roli_fast.evaluate.prepare import chosen
from roli_fast.evaluate.report import picture_name, table
from roli_fast.evaluate.shares import to_flags, to_text
from roli_fast.seeds import derived_generator
from roli_fast.threat import as_pixels

EPS = {"linf": 0.06, "l2": 0.5}

MORE = [
    "--unseen=pgd-4@l1=6,square-15,fog-3",
    "--corruptions=contrast,gaussian_noise",
    "--ood=digits",
]
MORE += ["--ood.image_size=8", "--ood.seed=5"]
"""Attacks that a model was not trained against, and other images, beside the norms."""


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beside") / "out"
    assess(folder, *MORE)
    return folder


def digits() -> ImageDataset:
    return DATASETS["digits"](image_size=SIZE).load().test.plain()


def images_of(ids: torch.Tensor) -> Batch:
    """The test images with these ids, in this order."""
    data = digits()
    return data.batch(torch.tensor([data.ids.tolist().index(i) for i in ids.tolist()]))


def test_flags_are_those_of_the_attacks_called_by_hand(straight: Path) -> None:
    report, model = read_report(straight), Nearest().eval()
    x, y, ids = images_of(report.ids)
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


def test_predictions_are_those_of_the_model(straight: Path) -> None:
    """Of the clean images, and of the attacked ones where an attack fooled it."""
    report, model = read_report(straight), Nearest().eval()
    tree, saved = report.tree, load_file(straight / "adversarial.safetensors")
    x, y, _ = images_of(report.ids)
    assert tree["clean"]["predictions"] == model(x).argmax(1).tolist()
    for norm in EPS:
        predicted = torch.tensor(tree["norms"][norm]["robust"]["predictions"])
        assert torch.equal(predicted, model(saved[norm]).argmax(1))
        assert torch.equal(predicted == y, report.robust[norm])
    union = torch.tensor(tree["union"]["predictions"])
    linf = torch.tensor(tree["norms"]["linf"]["robust"]["predictions"])
    assert torch.equal(union == y, report.union)
    assert torch.equal(union[~report.robust["linf"]], linf[~report.robust["linf"]])


def test_every_class_worst_first(straight: Path) -> None:
    report = read_report(straight)
    entries, labels = report.tree["per_class"], torch.tensor(report.tree["labels"])
    union = torch.tensor(report.tree["union"]["predictions"])
    assert sorted(entry["class"] for entry in entries) == sorted(map(str, range(10)))
    for entry in entries:
        own = labels == entry["label"]
        columns = {"clean": report.clean, **report.robust, "union": report.union}
        shares = {name: flags[own].double().mean().item() for name, flags in columns.items()}
        assert entry["images"] == int(own.sum()) and entry["accuracy"] == pytest.approx(shares)
        counts = {str(k): int((union[own] == k).sum()) for k in union[own].unique().tolist()}
        assert entry["attacked_as"] == counts
    worst = [entry["accuracy"]["union"] for entry in entries]
    assert worst == sorted(worst) and worst[0] < worst[-1]
    assert report.tree["guessing"] == labels.bincount().max().item() / 90
    printed = table(report.tree)
    assert f"\n{entries[0]['class']:<18}" in printed and "Guessing the most frequent" in printed
    assert f"{100 * report.tree['union']['accuracy']:.1f} %" in printed
    for words in ("linf pgd-3", "l2 apgd-ce-6", "95 % interval", "90 of the", "chosen at random"):
        assert words in printed


@pytest.mark.parametrize(
    ("model", "attacks", "signs"),
    [
        (
            "Steps",
            "pgd-10,apgd-ce-5,square-50",
            ["zero for", "the gradients are masked", "square-50"],
        ),
        ("OneAnswer", "pgd-1", ["the model has collapsed", "right for class '3' alone"]),
        ("nearest", "pgd-10,apgd-ce-20,square-50", []),
    ],
)
def test_masked_gradients_and_a_collapse_are_told(
    tmp_path: Path, model: str, attacks: str, signs: list[str]
) -> None:
    flags = [f"--model=evaluated_models:{model}", f"--attacks={attacks}", "--norm=linf"]
    tree = assess(tmp_path / "out", *flags, "--eps=0.15", "--images=40")
    told = table(tree)
    assert all(sign in told for sign in signs)
    assert ("masked" in told) == (model == "Steps") and ("collapsed" in told) == (len(signs) == 2)


def test_saved_images_fool_the_model_and_lie_in_the_ball(straight: Path) -> None:
    report, saved = read_report(straight), load_file(straight / "adversarial.safetensors")
    x, y, _ = images_of(report.ids)
    assert torch.equal(saved["ids"], report.ids) and torch.equal(saved["labels"], y)
    model = Nearest().eval()
    for norm, order in (("linf", torch.inf), ("l2", 2.0)):
        x_adv, robust = saved[norm], report.robust[norm]
        assert torch.equal(model(x_adv).argmax(1) == y, robust)
        assert torch.equal(x_adv[robust], x[robust])
        length = (x_adv.double() - x.double()).flatten(1).norm(order, dim=1)
        assert bool((length <= EPS[norm]).all())
        assert bool((length[~robust & report.clean] > 0).all())
        assert bool((x_adv >= 0).all() and (x_adv <= 1).all())
        names = [report.tree["names"][i] for i in (report.clean & ~robust).nonzero()[:, 0].tolist()]
        files = (straight / "adversarial" / norm).rglob("*.png")
        assert sorted(file.stem for file in files) == sorted(names)
        with Image.open(straight / "adversarial" / norm / f"{names[0]}.png") as picture:
            pixels = torch.from_numpy(np.array(picture)).movedim(-1, 0)
        row = report.tree["names"].index(names[0])
        assert torch.equal(pixels, as_pixels(x_adv[row], x[row]))
        assert (straight / "adversarial" / "clean" / f"{names[0]}.png").is_file()


@pytest.mark.parametrize(
    ("name", "path"),
    [("cat/1.jpg", "cat/1.jpg.png"), ("../../etc/x", "etc/x.png"), ("/etc/x.png", "etc/x.png")],
)
def test_a_picture_keeps_the_name_and_stays_in_its_folder(name: str, path: str) -> None:
    assert picture_name(name) == path


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
    # the steps and the last look, which tells the predictions too
    assert pgd["cost"]["forward_images"] == (3 + 1) * pgd["attacked"]
    assert apgd["attacked"] == pgd["attacked"] - pgd["fooled"]
    assert tree["cost"]["forward_images"] >= 90 + sum(s["cost"]["forward_images"] for s in searches)
    assert tree["environment"]["packages"]["torch"] and tree["model"]["sha256"]
    assert tree["shifts"] is tree["curves"] is tree["unseen"] is None


def test_neither_chunks_nor_batches_change_a_flag(straight: Path, tmp_path: Path) -> None:
    assess(tmp_path / "out", "--chunk=23", "--batch_size=90")
    assert_same_flags(straight, tmp_path / "out")


def test_union_only_attacks_what_is_left(straight: Path, tmp_path: Path) -> None:
    tree = assess(tmp_path / "out", "--union_only", "true")
    whole = read_report(straight).tree
    assert tree["union"]["flags"] == whole["union"]["flags"]
    assert tree["norms"]["l2"]["robust"] is None
    left = whole["norms"]["linf"]["robust"]["flags"].count("1")
    assert tree["norms"]["l2"]["searches"][0]["attacked"] == left
    assert read_report(tmp_path / "out").robust == {}


def test_what_a_short_search_found_holds_in_full_precision(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assess(folder, "--search_dtype=bfloat16", "--save_adversarial=true", "--images=60")
    saved, model = load_file(folder / "adversarial.safetensors"), Nearest().eval()
    for norm in EPS:
        right = model(saved[norm]).argmax(1) == saved["labels"]
        assert torch.equal(right, read_report(folder).robust[norm])


def test_a_larger_choice_holds_the_smaller_in_the_proportions_of_the_classes() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    order = mixed_order(labels, seed=0)
    assert sorted(order.tolist()) == list(range(100))
    for count in (10, 20, 50, 70):
        found = torch.bincount(labels[order[:count]], minlength=3)
        wanted = torch.tensor([0.6, 0.3, 0.1]) * count
        assert bool(((found - wanted).abs() <= 1).all()), (count, found)
    assert not torch.equal(order, mixed_order(labels, seed=1))
    splits = parse(FLAGS).config.data.load()
    some, more = (chosen(parse([*FLAGS, f"--images={n}"]).config, splits) for n in (30, 60))
    assert set(some.ids.tolist()) < set(more.ids.tolist())


def test_an_unreadable_report_is_told(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text('{"format": 99}')
    with pytest.raises(RoliFastError, match=r"evaluation\.json.*format 99"):
        read_report(tmp_path)
    with pytest.raises(RoliFastError, match="--resume"):
        read_report(tmp_path / "none")


def test_an_unseen_attack_is_made_on_all_images_that_are_right(
    straight: Path, beside: Path
) -> None:
    report, model = read_report(beside), Nearest().eval()
    unseen = report.tree["unseen"]
    balls = [(one["attack"], one["norm"], one["eps"]) for one in unseen["attacks"]]
    squares = [("square-15", "linf", 0.06), ("square-15", "l2", 0.5)]
    assert balls == [("pgd-4", "l1", 6.0), *squares, ("fog-3", "fog", 12 / 255)]
    right = int(report.clean.sum())
    assert [one["searches"][0]["attacked"] for one in unseen["attacks"]] == [right] * 4
    x, y, ids = (tensor[report.clean] for tensor in images_of(report.ids))
    for place, group, attack in (
        (0, "unseen pgd-4 l1 6", PGD("l1", 6.0, None, 4)),
        (3, "unseen fog-3 fog 0.04706", Fog(steps=3)),
    ):
        generator = derived_generator("evaluation", 0, group, attack.label)
        x_adv = attack(model, x, y, generator, sample_ids=ids)
        own = report.clean.clone()
        own[report.clean] = model(x_adv).argmax(1) == y
        assert torch.equal(to_flags(unseen["attacks"][place]["robust"]["flags"]), own)
    assert_same_flags(straight, beside)  # the norms are what they are without them


def test_means_and_unions_are_those_of_the_flags(beside: Path) -> None:
    report = read_report(beside)
    unseen, kinds = report.tree["unseen"], report.tree["shifts"]["corruptions"]
    flags = [to_flags(one["robust"]["flags"]) for one in unseen["attacks"]]
    together = flags[0] & flags[1] & flags[2] & flags[3]
    shares = [flag.double().mean().item() for flag in flags]
    assert unseen["mean_accuracy"] == pytest.approx(sum(shares) / 4)
    assert torch.equal(to_flags(unseen["union"]["flags"]), together)
    seen = together & report.union
    assert torch.equal(to_flags(unseen["union_with_norms"]["flags"]), seen)
    for entry in (level for kind in kinds.values() for level in kind.values()):
        seen = seen & to_flags(entry["flags"])
    assert torch.equal(to_flags(unseen["union_with_corruptions"]["flags"]), seen)
    assert int(seen.sum()) < int(report.union.sum())


def answers(images: ImageDataset, ids: list[int]) -> str:
    """What the model says about the images with these ids, one after another."""
    x, y, own = images.batch(torch.arange(len(images)))
    right = dict(zip(own.tolist(), (Nearest().eval()(x).argmax(1) == y).tolist(), strict=True))
    return "".join("01"[right[i]] for i in ids)


def test_corruptions_and_a_second_data_set_have_the_flags_of_their_images(beside: Path) -> None:
    report = read_report(beside).tree
    shifts, assessment = report["shifts"], parse([*FLAGS, *MORE]).config
    same = chosen(assessment, assessment.data.load())
    for kind, severity in (("contrast", 5), ("gaussian_noise", 2)):
        right = answers(corrupted(same, kind, severity, seed=0), report["ids"])
        entry = shifts["corruptions"][kind][str(severity)]
        assert entry["cost"]["forward_images"] == 90 and entry["cost"]["backward_images"] == 0
        assert entry["flags"] == right and entry["accuracy"] == right.count("1") / 90
    assert set(shifts["corruptions"]["contrast"]) == set("12345")
    assert assessment.ood is not None
    second, ids = chosen(assessment, assessment.ood.load(), at_most=True), shifts["ood"]["ids"]
    assert ids == sorted(ids) and shifts["ood"]["flags"] == answers(second, ids)
    assert shifts["ood"]["images"] == 90 and shifts["ood"]["accuracy"] > 0.7
    names = ("unseen l1 pgd-4", "unseen l2 square-15", "unseen, mean", "norms and unseen, union")
    names += ("norms, unseen, corruptions, union", "gaussian_noise, mean of 5", "second data set")
    assert [name for name in names if name not in table(report)] == []


def test_a_resume_measures_only_what_is_missing(beside: Path) -> None:
    before, kept = read_report(beside).tree, (beside / "chunks/00000.json").stat().st_mtime_ns
    for name in ("evaluation", "chunks/00001", "chunks/ood-00000"):
        (beside / f"{name}.json").unlink()
    after = assess(beside, *MORE, resume=True)
    assert after["shifts"] == before["shifts"]
    assert after["unseen"]["union_with_corruptions"] == before["unseen"]["union_with_corruptions"]
    assert (beside / "chunks/00000.json").stat().st_mtime_ns == kept


def test_points_of_a_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of `robustness_curve` on the same images."""
    out, radii = tmp_path / "out", (0.02, 0.06, 0.12)
    flags = ["--attacks=pgd-3,fgsm", "--norm=linf", "--eps=0.05", "--curve=0.02,0.06,0.12"]
    report = assess(out, *flags)
    pgd, fgsm = report["curves"]
    assert (pgd["attack"], fgsm["attack"]) == ("pgd-3", "fgsm")
    assert [point["eps"] for point in pgd["points"]] == [0, *radii]
    batch, attack = images_of(torch.tensor(report["ids"])), PGD(norm="linf", steps=3)
    curve = robustness_curve(Nearest(), [batch], attack, radii)
    assert pgd["flags"] == [to_text(right) for right in curve.right]
    whole = {"eps": 0.05, "accuracy": curve.expected_robustness(0.05)}
    assert pgd["expected_robustness"] == whole
    assert "curve pgd-3, expected" in table(report)
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    (out / "chunks/00000.json").unlink()
    monkeypatch.setattr(driver, "plot_curves", None)  # a picture that fails costs no report
    assert assess(out, *flags, resume=True)["curves"] == report["curves"]


def test_a_pass_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of more than 10 images are refused in the second chunk."""
    gradient, calls = InputGradient._gradient, 0

    def limited(self: Any, x: Any, *rest: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 60 and len(x) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return gradient(self, x, *rest)

    monkeypatch.setattr(InputGradient, "_gradient", limited)
    with pytest.raises(OutOfMemoryError, match="`--batch_size`: .*got 16. Lower it."):
        assess(tmp_path / "out")
    assert (tmp_path / "out" / "chunks" / "00001.json").exists()

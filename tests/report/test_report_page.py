"""report.html says what the files say, names them, and names the command of what is missing."""

import base64
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from made_up_run import CLASSES, change_json, evaluation_of, summary, write_json, write_run
from PIL import Image
from reading import Read

from roli_fast.attacks import AutoAttack
from roli_fast.errors import RunDirectoryError
from roli_fast.evaluate import attack_passes
from roli_fast.report import plots, write
from roli_fast.report.read import read as read_run
from roli_fast.report.subjects import Page
from roli_fast.running.text import duration


def read(run: Path) -> Read:
    """The page of a run."""
    return Read(write(run).read_text(encoding="utf-8"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished and analysed run of two methods and two seeds."""
    return write_run(tmp_path / "my run")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Read:
    """The page of such a run, read only."""
    return read(write_run(tmp_path_factory.mktemp("page") / "my <run>"))


@pytest.mark.parametrize(
    ("caption", "row", "cells"),
    [
        # of 80 and 84 and of 66 and 70, the sample standard deviation is sqrt(8)
        (
            "Accuracy on 400 test images, attacked by pgd, 10 steps in linf 8/255.",
            1,
            # expected robustness of 70 and 72; a pass a stage's epoch
            ["RoLI", "82.0 ± 2.8 %", "68.0 ± 2.8 %", "71.0 ± 1.4 %", "2", "probe 1 + finetune 3"]
            + ["20,000,000", "2 min 40 s"],
        ),
        ("Accuracy on 400 test images", 2, ["RanLI", "77.0 ± 2.8 %", "61.0 ± 1.4 %"]),
        ("Every seed", 2, ["RoLI", "1", "finetune", "64.0 %", "84.0 %", "70.0 %"]),
        ("How the stages train", 3, ["ranli (as finetune)", "4", "full", "adversarial"]),
        # ends of 2 + place + seed: 2 and 3, 3 and 4
        ("Head and residual", 1, ["RoLI, probe", "3", "2.5e-05", "1.00 ± 0 → 2.50 ± 0.71"]),
        ("Head and residual", 2, ["RoLI, finetune", "3", "2.5e-05", "2.00 ± 0 → 3.50 ± 0.71"]),
        # relative 0.5 and 0.6; the cosine on attacked images is null
        ("How far each", 2, ["RoLI, finetune", "1.10 ± 0.14", "0.550 ± 0.071", "0.550 ± 0.071"]),
        (
            "Calibration on test images",
            1,
            ["RoLI", "clean", "1.60 ± 0", "12.0 ± 0.0 %", "4.0 ± 0.0 %", "–", "120 / 200", "2"],
        ),
        # of 60 and 70
        ("The same as numbers, linf", 3, ["8", "65.0 ± 7.1 %", "65.0 ± 7.1 %"]),
        (
            "Every stage",
            1,
            ["RoLI", "probe", "1", "12,345", "64.0 ± 0.0 %", "5,000,000", "25.0 ± 0", "40 s"],
        ),
    ],
)
def test_the_tables_have_the_files_numbers(
    page: Read, caption: str, row: int, cells: list[str]
) -> None:
    assert page.table(caption)[row][: len(cells)] == cells


def test_what_users_wrote_stays_text(run: Path, page: Read) -> None:
    for text in (", ".join(CLASSES), "made up <i>for</i> a test", "my <run>"):
        assert text in page.text
    assert not {"b", "i", "run", "script"} & {name for name, _ in page.tags}
    assert "seeds: [0, 1]" in page.text[page.text.index("data: {name: digits") :]
    change_json(run / "summary.json", classes=["caf\udce9", "b", "c"])  # latin-1 on disk
    assert "caf?, b, c" in read(run).text


def test_the_page_is_one_file(run: Path) -> None:
    html = write(run).read_text(encoding="utf-8")
    for name, tag in Read(html).tags:
        for attribute in ("src", "srcset", "data", "action"):
            assert (tag.get(attribute) or "data:").startswith("data:")
        assert name not in ("script", "iframe", "object", "embed")
        if name == "link":
            assert tag["href"] == "data:,"
    assert not re.search(r"url\((?!data:)|@import|https?:", html)
    assert write(run).read_text(encoding="utf-8") == html  # the same files, the same page


def test_the_files_of_the_page_are_all_linked_and_no_other(run: Path) -> None:
    out = run.parent / "else where" / "page.html"
    known = {path for path in run.rglob("*") if path.is_file()}
    page = Read(write(run, out=out).read_text(encoding="utf-8"))
    links = [tag["href"] or "" for name, tag in page.tags if name == "a"]
    ids = {tag["id"] for _, tag in page.tags if tag.get("id")}
    assert {link[1:] for link in links if link[0] == "#"} <= ids
    files = {Path(os.path.normpath(out.parent / unquote(x))) for x in links if x[0] != "#"}
    assert files == {path for path in known if path.name not in ("test.json", "result.json")}


def test_the_first_lines_claim_what_the_paired_test_allows(run: Path, page: Read) -> None:
    said = "RoLI 68.0 %, RanLI 61.0 %, a difference of +7.0 points (paired t, over 2 seeds: p = "
    assert f"{said}0.09). That is no evidence of a difference." in page.text
    tree = summary()
    pair = tree["comparisons"][0] | {"p_value": 0.01}
    others = [pair | {"methods": methods} for methods in (["roli", "ft"], ["ft", "roli"])]
    tree["comparisons"] = [pair, *others]
    write_json(run / "summary.json", tree)
    many = read(run)
    assert "p = 0.01)" in many.text and "no evidence" not in many.text
    rows = many.table("Paired differences")
    assert rows[1] == ["RoLI − RanLI", "pgd-10", "+7.0 points", "p = 0.01", "paired t, over seeds"]
    assert many.text.count("a difference of") == 1  # of RoLI and RanLI, which differ in the head


def test_one_seed_says_so(run: Path) -> None:
    tree = summary()
    tree["seeds"] = [0]
    tree["comparisons"][0] |= {"test": "McNemar exact, over test images", "p_value": 0.001}
    for method in tree["methods"].values():
        del method["per_seed"][1], method["test"]["sd"]
    write_json(run / "summary.json", tree)
    page = read(run)
    told = "One seed: these two trained models differ; other seeds may come out otherwise."
    assert told in page.text
    assert page.table("Accuracy on 400 test images")[1][1:3] == ["82.0 ± 2.0 %", "68.0 ± 2.5 %"]
    assert "± is the binomial standard error of the test images" in page.text


def test_a_temperature_that_was_not_fitted_says_why(run: Path) -> None:
    path = run / "seed-0" / "roli" / "analysis.json"
    tree = json.loads(path.read_text())
    tree["calibration"]["clean"] |= {"fitted": False, "temperature": 1.0, "reason": "too few: 7"}
    write_json(path, tree | {"notes": ["a note of its own"]})
    text = read(run).text
    assert "No temperature was fitted, so T = 1, for RoLI clean (seed 0): too few: 7." in text
    assert "Note of the analysis: a note of its own" in text


def test_the_difference_of_an_example_is_magnified_to_the_radius(page: Read) -> None:
    images = [tag for name, tag in page.tags if name == "img"]
    pixels = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode((tag["src"] or "").split(",")[1]))))
        for tag in images
    ]
    assert len(images) == 6
    assert pixels[0][0, 0].tolist() == [100, 100, 100]
    assert pixels[1][0, 0].tolist() == [108, 108, 108]
    assert pixels[2][0, 0].tolist() == [255, 255, 255] and pixels[2][1, 1].tolist() == [128] * 3
    assert pixels[5][0, 0].tolist() == [0, 0, 0]
    assert "difference× 15.9" in page.text.replace("difference × ", "difference× ")
    assert (
        "test/cat/1.jpg, “cat”: fooled" in page.text
        and "“<b>owl</b>”: withstands the attack" in page.text
    )


def test_an_example_passes_for_no_more_than_it_is(run: Path) -> None:
    found = dict(np.load(run / "seed-0" / "roli" / "examples.npz"))
    wrong = found | {"clean_prediction": [1, 2], "unrounded_prediction": [1, 0]}
    np.savez(run / "seed-0" / "ranli" / "examples.npz", **wrong)
    text = read(run).text
    assert "RanLI, seed 0: 1 of 2 wrong before the attack" in text
    assert "“cat”: wrong before the attack" in text
    assert "“<b>owl</b>”: fooled, but not by these rounded pixels" in text


def test_the_source_of_pretraining_has_its_classes(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["source"] = {"name": "digits", "classes": [0, 1]}
    for attack, how in (({"name": "pgd"}, "pretrained robustly"), (None, "pretrained")):
        config["pretrain"] = config["probe"] | {"attack": attack}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        assert f"vit_tiny_patch16_224; {how} on digits (classes 0, 1) in this run" in read(run).text


def test_without_an_analysis_its_command_stands_there(tmp_path: Path, page: Read) -> None:
    text = read(write_run(tmp_path / "a run", analysis=False)).text
    for what in ("No curve of", "No example images", "no analysis.json of", "No calibration"):
        assert what in text
    assert text.count(f"python -m roli_fast.analyze '{tmp_path / 'a run'}'") == 4
    assert "my <run>' --ft_ratio --head_scale --kernel" in page.text


def test_the_recommended_attack_says_what_it_takes(page: Read) -> None:
    """25 images a second with PGD-7 are 25 (3 + 14) = 425 passes; 400 images."""
    passes = attack_passes(AutoAttack(), 3)
    assert 5000 < passes < 20000
    told = (
        f"takes AutoAttack {passes:,} passes: at the speed of training all test images take at most"
    )
    assert f"{told} {duration(400 * passes / 425)}. AutoAttack:" in page.text


def test_the_alignment_of_single_steps_is_drawn_where_it_is(run: Path, page: Read) -> None:
    assert "PertAlign" not in page.text
    line = (run / "metrics.jsonl").read_text().splitlines()[0]
    record = json.dumps(json.loads(line) | {"epoch": 7, "train_alignment": 0.9})
    (run / "metrics.jsonl").write_text(f"{line}\n{record}\n")
    assert "PertAlign of single steps" in read(run).text


def test_numbers_that_are_none_are_a_dash(run: Path) -> None:
    path = run / "seed-0" / "ranli" / "analysis.json"
    text = path.read_text()
    (run / "seed-1" / "ranli" / "analysis.json").unlink()
    path.write_text(re.sub(r"-?\d+\.\d+(e-\d+)?", "NaN", text))
    page = read(run)
    assert "nan" not in page.text.lower().replace("nano", "")
    assert page.table("Head and residual of each stage")[3][3] == "–"


def test_an_unfinished_run(run: Path) -> None:
    (run / "summary.json").unlink()
    (run / "seed-1" / "ranli" / "test.json").unlink()
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"seed": 0, "meth')  # killed while it wrote
    page = read(run)
    assert f"python -m roli_fast.train --run_dir '{run}' --resume" in page.text
    rows = page.table("What the seeds have so far")
    assert rows[1] == ["RoLI", "0", "finetune", "64.0 %", "80.0 %", "66.0 %"]
    assert rows[4] == ["RanLI", "1", "ranli", "64.0 %", "–", "–"]


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for path in sorted(run.rglob("*"), reverse=True):
        if path.name != "config.yaml":
            path.rmdir() if path.is_dir() else path.unlink()
    text = read(run).text
    assert "is not finished" in text and "metrics.jsonl has no finished epoch yet" in text


def test_a_sweep_shows_its_cells_and_reads_the_chosen_one(tmp_path: Path) -> None:
    run, cell = tmp_path / "sweep", tmp_path / "sweep" / "roli" / "probe.epochs=1"
    write_run(cell)
    (run / "config.yaml").write_text((cell / "config.yaml").read_text())
    tree = summary()
    del tree["methods"]["ranli"]
    scores = {"method": "roli", "validation_accuracy": 0.5, "sd": 0.01, "diverged": None}
    rows = [
        scores | {"cell": name, "folder": f"roli/{name}", "chosen": not place}
        for place, name in enumerate(("probe.epochs=1", "probe.epochs=9"))
    ]
    write_json(run / "summary.json", tree | {"comparisons": [], "sweep": {"cells": rows}})
    page = read(run)
    assert page.table("The sweep")[1:] == [
        ["probe.epochs=1", "RoLI", "50.0 ± 1.0 %", "chosen"],
        ["probe.epochs=9", "RoLI", "50.0 ± 1.0 %", ""],
    ]
    assert len(page.table("Head and residual of each stage")) == 3


def test_every_class_of_the_test_stands_worst_first(page: Read) -> None:
    """In the order of the first method; RanLI's worst class is RoLI's best."""
    rows = page.table("Accuracy of every class on the test images")
    assert rows[0] == ["class", "images"] + [
        f"{method}, {what}" for method in ("RoLI", "RanLI") for what in ("clean", "robust")
    ]
    assert rows[1:] == [
        ["cat", "100", "50.0 %", "0.0 %", "50.0 %", "20.0 %"],
        ["dog & wolf", "101", "60.0 %", "10.0 %", "60.0 %", "10.0 %"],
        ["<b>owl</b>", "102", "70.0 %", "20.0 %", "70.0 %", "0.0 %"],
    ]
    assert "Guessing the most frequent class: 40.0 %." in page.text


def test_an_evaluation_in_the_run_directory_is_shown(run: Path) -> None:
    folder = run / "evaluation"
    write_json(folder / "evaluation.json", evaluation_of())
    change_json(run / "summary.json", warnings=["roli, seed 1: the model has collapsed"])
    for name in ("linf/cat/2.jpg.png", "clean/cat/2.jpg.png"):
        (folder / "adversarial" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 5), "red").save(folder / "adversarial" / name)
    page = read(run)
    row, half = ["evaluation", "x/seed-0/roli", "autoattack"], "50.0 % [40.0, 60.0]"
    assert [cells[3:] for cells in page.table("Evaluations")[1:]] == [
        [threat, "4", half, half] for threat in ("linf 8/255", "l2 0.5", "union")
    ]
    assert page.table("Evaluations")[1][:3] == row
    assert "stronger attacks find lower ones" not in page.text
    assert page.table("evaluation: every attack")[1] == ["apgd-ce", "linf", "3", "1"]
    assert page.table("evaluation: attacks that the model was not trained against")[1:] == [
        ["square, l2 1", half],
        ["these and the attacks above", half],
    ]
    assert page.table("evaluation: accuracy on other images")[1:] == [
        ["fog", "50.0 %", "25.0 %", "37.5 %"],
        ["the second data set", "–", "–", "12.5 %"],
    ]
    assert "evaluation/evaluation.json, linf" in page.text
    rows = page.table("evaluation: every class, worst first.")
    assert rows[0][2:] == ["clean", "robust, linf", "robust, l2", "robust, union"] + [
        "attacked, taken most often for"
    ]
    assert rows[2] == ["dog & wolf", "1", "100.0 %", "100.0 %", "0.0 %", "0.0 %", "cat (1)"]
    assert rows[3][-1] == "output 9 (1)"
    matrix = page.table("evaluation: what attacked images of each class are taken for")
    assert matrix == [
        ["class", "<b>owl</b>", "dog & wolf", "cat", "other"],
        ["<b>owl</b>", "", "1", "", ""],
        ["dog & wolf", "", "", "1", ""],
        ["cat", "", "", "1", "1"],
    ]
    named = page.table("Images that were right before the attacks")
    assert named == [
        ["image", "class", "taken for", "norm"],
        ["cat/2.jpg", "cat", "<b>owl</b>", "linf"],
        ["dog & wolf/1.jpg", "dog & wolf", "cat", "l2"],
    ]
    alts = [tag["alt"] for name, tag in page.tags if name == "img"]
    assert "Test image cat/2.jpg of “cat”" in alts and len(alts) == 6 + 2
    for text in ("evaluation: the model has <i>collapsed</i>.", "roli, seed 1: the model has"):
        assert f"Warning: {text}" in page.text


def test_evaluations_of_every_seed_stand_beside_the_test(run: Path) -> None:
    """Of RoLI's two seeds, linf 60 and 70 and unseen 30 and 50; RanLI has none."""
    for seed, (robust, unseen) in enumerate([(0.6, 0.3), (0.7, 0.5)]):
        tree = evaluation_of()
        tree["model"] = {"file": f"else/seed-{seed}/roli/stage-2-finetune/best.safetensors"}
        tree["norms"]["linf"]["robust"]["accuracy"] = robust
        tree["norms"]["l2"]["robust"] = None
        tree["unseen"]["mean_accuracy"] = unseen
        write_json(run / f"evaluation/{seed}/evaluation.json", tree)
    rows = read(run).table("Accuracy on 400 test images")
    assert rows[0][3:6] == ["expected robustness", "autoattack, linf 8/255", "unseen, mean"]
    assert [row[4:6] for row in rows[1:]] == [["65.0 ± 7.1 %", "40.0 ± 14.1 %"], ["–", "–"]]


def test_accuracy_is_drawn_over_cost_where_every_method_tells_it(run: Path) -> None:
    """RoLI took 20 million passes, RanLI as many: circles of 82 and 77 % at one place."""
    (chart,) = [c for c in plots.over_cost(Page([read_run(run)]).tested, []) if "Clean" in c.title]
    x, y = (re.findall(rf'class="dot c\d" .*?c{axis}="([\d.]+)"', chart.svg) for axis in "xy")
    assert x[0] == x[1] and float(y[0]) < float(y[1])
    assert "RoLI 82 to 82; RanLI 77 to 77" in chart.svg
    assert "Accuracy over what the training cost" in read(run).text
    tree = json.loads((run / "summary.json").read_text())
    del tree["methods"]["ranli"]["per_seed"][0]["stages"][0]["passes"]
    write_json(run / "summary.json", tree)
    assert "Accuracy over what the training cost" not in read(run).text


def test_the_strengths_of_a_clean_probe(run: Path) -> None:
    tree = summary()
    tried = [
        {"strength": s, "head_norm": n, "validation_accuracy": 0.5, "validation_nll": 1.0}
        | {"train_loss": 0.9, "iterations": 7, "converged": True}
        for s, n in ((0.1, 1.0), (0.01, 5.0))
    ]
    for seed in tree["methods"]["ranli"]["per_seed"]:
        seed["stages"][0] |= {"strength": 0.01, "head_norm": 5.0, "strengths": tried}
    write_json(run / "summary.json", tree)
    rows = read(run).table("Clean probes by L-BFGS")
    assert rows[1][:4] == ["RanLI", "0.01", "5.00 ± 0", "50.0 ± 0.0 %"]
    assert [row[-1] for row in rows[1:]] == ["2, an end of the grid", "0"]


def test_what_was_analysed_on_demand_is_shown(run: Path) -> None:
    path = run / "seed-0" / "ranli" / "analysis.json"
    tree = json.loads(path.read_text())
    update = {"optimizer": "adamw", "predicted": 2.0, "actual": 1.6, "relative_error": 0.25}
    update |= {"ft_ratio": 0.4, "lr": 0.002}
    step = {"ft_ratio": 0.1987, "lr": 0.002, "predicted": 0.5, "actual": 0.4}
    step |= {"relative_error": 0.2, "first_update": update}
    part = {"rank": 12, "frobenius": 51000.0}
    fits = {"train": 0.9, "test": 0.7, "trivial": 0.4}
    tree["stages"][0] |= {
        "one_step": {"clean": step, "adversarial": None},
        "head_scale": [{"scale": 0.1, "features": 0.05, "logits_F": 0.01, "residual": 0.9}],
        "kernel": {"images": 30, "classes": 3, "P": part, "F": part, "NTK": part}
        | {"spectrum": [1.0, 0.1], "regression": fits},
    }
    write_json(path, tree)
    page = read(run)
    row = page.table("One plain gradient step")[1]
    assert row == ["RanLI", "clean", "0.199", "0.002", "0.500", "0.400", "20.0 %", "1"]
    row = page.table("The same for a step of the stage's own optimiser")[1]
    assert row == ["RanLI", "adamw", "clean", "0.400", "0.002", "2.00", "1.60", "25.0 %", "1"]
    row = page.table("Predicted change by the same step")[1]
    assert row == ["RanLI", "× 0.1", "0.900", "0.0500", "0.0100"]
    head, row = page.table("The kernel of clean training images where each stage began")
    assert head[-3:] == ["accuracy, training", "accuracy, validation", "trivial"]
    assert row[:4] == ["RanLI", "30 × 3", "12", "51,000"]
    assert row[-3:] == ["90.0 %", "70.0 %", "40.0 %"]
    assert "Not computed" not in page.text


@pytest.mark.parametrize(
    "break_it",
    [
        lambda run: (run / "config.yaml").write_text("a: 1\n"),
        lambda run: (run / "summary.json").write_text("{"),
        lambda run: change_json(run / "summary.json", comparisons=[{"attack": "pgd-10"}]),
    ],
)
def test_what_is_no_run_is_refused(run: Path, break_it: Callable[[Path], object]) -> None:
    break_it(run)
    with pytest.raises(RunDirectoryError, match="`run`: expected"):
        write(run)
    assert not (run / "report.html").exists()

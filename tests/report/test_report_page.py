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
from made_up_run import CLASSES, change_json, summary, write_json, write_run
from PIL import Image
from reading import Read

from roli_fast.errors import RunDirectoryError
from roli_fast.report import write


def read(run: Path) -> Read:
    """The page of a run."""
    return Read(write(run).read_text(encoding="utf-8"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished and analysed run of two methods and two seeds."""
    return write_run(tmp_path / "my run")


def test_the_table_has_the_summary_s_means_and_deviations(run: Path) -> None:
    rows = read(run).table("Accuracy on 400 test images, attacked by pgd, 10 steps in linf 8/255.")
    # of 80 and 84 and of 66 and 70, the sample standard deviation is sqrt(8)
    assert rows[0][:4] == ["method", "clean", "robust, pgd-10", "seeds"]
    stages = "probe 1 + finetune 3"
    assert rows[1] == ["RoLI", "82.0 ± 2.8 %", "68.0 ± 2.8 %", "2", stages, "2 min 40 s"]
    assert rows[2][:3] == ["RanLI", "77.0 ± 2.8 %", "61.0 ± 1.4 %"]


def test_the_first_lines_claim_what_the_paired_test_allows(run: Path) -> None:
    text = read(run).text
    said = "RoLI 68.0 %, RanLI 61.0 %, a difference of +7.0 points (paired t, over 2 seeds: p = "
    assert f"{said}0.09). That is no evidence of a difference." in text
    tree = summary()
    tree["comparisons"][0]["p_value"] = 0.01
    write_json(run / "summary.json", tree)
    text = read(run).text
    assert "p = 0.01)" in text and "no evidence" not in text


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
    rows = page.table("Accuracy on 400 test images")
    assert rows[1][1:3] == ["82.0 ± 2.0 %", "68.0 ± 2.5 %"]
    assert "± is the binomial standard error of the test images" in page.text


def test_the_curve_s_numbers_stand_beside_it(run: Path) -> None:
    page = read(run)
    assert "Test images attacked at each radius: 200 by pgd-10. Band: ±" in page.text
    rows = page.table("The same as numbers, linf")
    assert rows[0] == ["radius in 1/255", "RoLI", "RanLI"]
    assert rows[3] == ["8", "65.0 ± 7.1 %", "65.0 ± 7.1 %"]  # of 60 and 70
    for seed in (0, 1):
        change_json(run / f"seed-{seed}" / "ranli" / "analysis.json", curve=None)
    assert read(run).table("The same as numbers, linf")[3] == ["8", "65.0 ± 7.1 %"]


def test_stages_as_analysed(run: Path) -> None:
    page = read(run)
    assert "bars and bands are ±" in page.text
    head = {row[0]: row for row in page.table("Head and residual of each stage")}
    # ends of 2 + place + seed: 2 and 3, 3 and 4
    assert head["RoLI, probe"][3] == "1.00 ± 0 → 2.50 ± 0.71"
    assert head["RoLI, finetune"][3] == "2.00 ± 0 → 3.50 ± 0.71"
    assert head["RanLI"][2] == "2.5e-05"
    moved = {row[0]: row for row in page.table("How far each stage moved")}
    # relative 0.5 and 0.6; the cosine on attacked images is null
    assert moved["RoLI, finetune"][2:6] == ["0.550 ± 0.071", "0.550 ± 0.071", "0.900 ± 0", "–"]


def test_calibration_as_analysed(run: Path) -> None:
    rows = read(run).table("Calibration on test images")
    found = ["1.60 ± 0", "12.0 ± 0.0 %", "4.0 ± 0.0 %", "–", "120 / 200", "2"]
    assert rows[1] == ["RoLI", "clean", *found]
    assert rows[2][5] == "30.0 ± 0.0 %"


def test_a_temperature_that_was_not_fitted_says_why(run: Path) -> None:
    path = run / "seed-0" / "roli" / "analysis.json"
    tree = json.loads(path.read_text())
    tree["calibration"]["clean"] |= {"fitted": False, "temperature": 1.0, "reason": "too few: 7"}
    write_json(path, tree)
    assert (
        "No temperature was fitted, so T = 1, for RoLI clean (seed 0): too few: 7."
        in read(run).text
    )


def test_the_difference_of_an_example_is_magnified_to_the_radius(run: Path) -> None:
    page = read(run)
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
    assert "“cat”: fooled" in page.text and "“<b>owl</b>”: withstands the attack" in page.text


def test_the_files_of_the_page_are_all_listed_and_it_names_no_other(run: Path) -> None:
    page = read(run)
    links = [unquote(tag["href"] or "") for name, tag in page.tags if name == "a"]
    files = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    unread = {file for file in files if file.endswith(("report.html", "test.json", "result.json"))}
    assert {link for link in links if link[0] != "#"} == files - unread


def test_images_wrong_before_the_attack_do_not_pass_for_robust(run: Path) -> None:
    found = dict(np.load(run / "seed-0" / "roli" / "examples.npz"))
    found["clean_prediction"] = np.array([1, 2])
    np.savez(run / "seed-0" / "ranli" / "examples.npz", **found)
    page = read(run)
    assert "RanLI, seed 0: 1 of 2 wrong before the attack, 0 fooled" in page.text
    assert "“cat”: wrong before the attack" in page.text


def test_an_attack_that_rounding_undoes_is_no_withstanding(run: Path) -> None:
    path = run / "seed-0" / "roli" / "examples.npz"
    found = dict(np.load(path))
    np.savez(path, **found | {"unrounded_prediction": np.array([1, 0])})
    page = read(run)
    assert "“<b>owl</b>”: fooled, but not by these rounded pixels" in page.text


def test_names_that_are_no_text_have_a_page(run: Path) -> None:
    change_json(run / "summary.json", classes=["caf\udce9", "b", "c"])  # latin-1 on disk
    assert "caf?, b, c" in read(run).text


def test_the_source_of_pretraining_has_its_classes(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["source"] = {"name": "digits", "classes": [0, 1]}
    for attack, how in (({"name": "pgd"}, "pretrained robustly"), (None, "pretrained")):
        config["pretrain"] = config["probe"] | {"attack": attack}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        assert f"vit_tiny_patch16_224; {how} on digits (classes 0, 1) in this run" in read(run).text


def test_what_users_wrote_stays_text(run: Path) -> None:
    html = write(run).read_text(encoding="utf-8")
    page = Read(html)
    assert ", ".join(CLASSES) in page.text
    assert "made up <i>for</i> a test" in page.text
    assert not {"b", "i", "script"} & {name for name, _ in page.tags}


def test_the_page_is_one_file(run: Path) -> None:
    page = read(run)
    for name, tag in page.tags:
        for attribute in ("src", "srcset", "data", "action"):
            assert (tag.get(attribute) or "data:").startswith("data:")
        assert name not in ("script", "iframe", "object", "embed")
        if name == "link":
            assert tag["href"] == "data:,"
    assert not re.search(r"url\((?!data:)|@import", write(run).read_text(encoding="utf-8"))


@pytest.mark.parametrize("where", ["my run/report.html", "else where/page.html"])
def test_links_lead_to_the_files(run: Path, where: str) -> None:
    out = run.parent / where
    page = Read(write(run, out=out).read_text(encoding="utf-8"))
    ids = {tag["id"] for _, tag in page.tags if tag.get("id")}
    links = [tag["href"] or "" for name, tag in page.tags if name == "a"]
    files = {os.path.normpath(out.parent / unquote(link)) for link in links if link[0] != "#"}
    assert all(link[1:] in ids for link in links if link[0] == "#")
    assert all(map(os.path.isfile, files))
    named = {Path(file).name for file in files}
    assert named >= {"summary.json", "config.yaml", "analysis.json", "examples.npz"}
    assert named >= {"metrics.jsonl", "environment.json"}


def test_without_an_analysis_its_command_stands_there(tmp_path: Path) -> None:
    text = read(write_run(tmp_path / "a run", analysis=False)).text
    command = f"python -m roli_fast.analyze '{tmp_path / 'a run'}'"
    for what in ("No curve of", "No example images", "no analysis.json of", "No calibration"):
        assert what in text
    assert text.count(command) == 4


def test_what_is_not_computed_has_its_flags(run: Path) -> None:
    assert f"python -m roli_fast.analyze '{run}' --ft_ratio --head_scale --kernel" in read(run).text


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("analysis.json", b"{", "seed-0/roli/analysis.json: Expecting"),
        ("analysis.json", b"[]", "seed-0/roli/analysis.json: not a JSON object"),
        ("analysis.json", b'{"schema": 9}', "schema 9, and this version reads 1"),
        ("examples.npz", b"no archive", "seed-0/roli/examples.npz: "),
        ("evaluation.json", b"{}", "evaluation.json: not an evaluation of this version"),
    ],
)
def test_a_damaged_file_is_left_out(run: Path, name: str, data: bytes, told: str) -> None:
    (run / "seed-0" / "roli" / name).write_bytes(data)
    text = read(run).text
    assert told in text
    assert "68.0 ± 2.8 %" in text


def test_numbers_that_are_none_are_a_dash(run: Path) -> None:
    path = run / "seed-0" / "ranli" / "analysis.json"
    text = path.read_text()
    (run / "seed-1" / "ranli" / "analysis.json").unlink()
    path.write_text(re.sub(r"-?\d+\.\d+(e-\d+)?", "NaN", text))
    page = read(run)
    assert "nan" not in page.text.lower().replace("nano", "")
    rows = {row[0]: row for row in page.table("Head and residual of each stage")}
    assert rows["RanLI"][3] == "–"


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
    rows = [
        {"method": "roli", "cell": "probe.epochs=1", "folder": "roli/probe.epochs=1"},
        {"method": "roli", "cell": "probe.epochs=9", "folder": "roli/probe.epochs=9"},
    ]
    scores = {"validation_accuracy": 0.5, "sd": 0.01, "diverged": None}
    rows = [row | scores | {"chosen": not place} for place, row in enumerate(rows)]
    write_json(run / "summary.json", tree | {"comparisons": [], "sweep": {"cells": rows}})
    page = read(run)
    assert page.table("The sweep")[1:] == [
        ["probe.epochs=1", "RoLI", "50.0 ± 1.0 %", "chosen"],
        ["probe.epochs=9", "RoLI", "50.0 ± 1.0 %", ""],
    ]
    assert len(page.table("Head and residual of each stage")) == 3


def test_an_evaluation_in_the_run_directory_is_shown(run: Path) -> None:
    entry = {"accuracy": 0.5, "interval_95": [0.4, 0.6]}
    tree = {
        "images": 100,
        "data": {"split": "test"},
        "model": {"source": "runs/x/seed-0/roli"},
        "attacks": [{"name": "autoattack"}],
        "clean": entry,
        "norms": {"linf": {"eps": 8 / 255, "robust": entry | {"accuracy": 0.45}}},
        "union": entry,
    }
    write_json(run / "evaluation" / "roli" / "evaluation.json", tree)
    page = read(run)
    row = ["evaluation/roli", "x/seed-0/roli", "autoattack", "linf 8/255", "100"]
    assert page.table("Evaluations")[1] == [*row, "50.0 % [40.0, 60.0]", "45.0 % [40.0, 60.0]"]
    assert "stronger attacks find lower ones" not in page.text


def test_many_pairs_of_methods_get_a_table(run: Path) -> None:
    tree = summary()
    pair = tree["comparisons"][0]
    tree["comparisons"] += [pair | {"methods": ["roli", "ft"]}, pair | {"methods": ["ft", "roli"]}]
    write_json(run / "summary.json", tree)
    page = read(run)
    rows = page.table("Paired differences")
    assert rows[1] == ["RoLI − RanLI", "pgd-10", "+7.0 points", "p = 0.09", "paired t, over seeds"]
    assert "Highest mean accuracy: clean RoLI (82.0 %); pgd-10 RoLI (68.0 %)." in page.text
    assert page.text.count("a difference of") == 1  # of RoLI and RanLI, which differ in the head


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
    page = read(run)
    rows = page.table("Clean probes by L-BFGS")
    assert rows[1][:4] == ["RanLI", "0.01", "5.00 ± 0", "50.0 ± 0.0 %"]
    assert [row[-1] for row in rows[1:]] == ["2, an end of the grid", "0"]


def _no_config(run: Path) -> None:
    (run / "config.yaml").unlink()


def _other_config(run: Path) -> None:
    (run / "config.yaml").write_text("a: 1\n")


def _bad_summary(run: Path) -> None:
    (run / "summary.json").write_text("{")


def _other_summary(run: Path) -> None:
    (run / "summary.json").write_text("{}")


@pytest.mark.parametrize("break_it", [_no_config, _other_config, _bad_summary, _other_summary])
def test_what_is_no_run_is_refused(run: Path, break_it: Callable[[Path], None]) -> None:
    break_it(run)
    with pytest.raises(RunDirectoryError, match="`run`: expected"):
        write(run)
    assert not (run / "report.html").exists()


def test_the_same_files_give_the_same_page(run: Path) -> None:
    assert write(run).read_bytes() == write(run).read_bytes()


def test_the_configuration_is_there_whole(run: Path) -> None:
    html = write(run).read_text(encoding="utf-8")
    page = Read(html)
    inside = page.text[page.text.index("data: {name: digits") :]
    assert "seeds: [0, 1]" in inside
    assert yaml.safe_load((run / "config.yaml").read_text())["methods"] == ["roli", "ranli"]


def test_changed_analysis_changes_the_page(run: Path) -> None:
    before = write(run).read_bytes()
    change_json(run / "seed-0" / "roli" / "analysis.json", notes=["a note of its own"])
    assert "a note of its own" in read(run).text
    assert write(run).read_bytes() != before


def test_what_was_analysed_on_demand_is_shown(run: Path) -> None:
    path = run / "seed-0" / "ranli" / "analysis.json"
    tree = json.loads(path.read_text())
    update = {"optimizer": "adamw", "predicted": 2.0, "actual": 1.6, "relative_error": 0.25}
    update["ft_ratio"] = 0.4
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
    assert row == ["RanLI", "clean", "adamw", "0.400", "0.002", "2.00", "1.60", "25.0 %", "1"]
    row = page.table("Predicted change by the same step")[1]
    assert row[:5] == ["RanLI", "× 0.1", "0.900", "0.0500", "0.0100"]
    rows = page.table("The kernel of clean training images where each stage began")
    row = rows[1]
    assert rows[0][-3:] == ["accuracy, training", "accuracy, validation", "trivial"]
    assert row[:4] == ["RanLI", "30 × 3", "12", "51,000"]
    assert row[-3:] == ["90.0 %", "70.0 %", "40.0 %"]
    assert "Not computed" not in page.text

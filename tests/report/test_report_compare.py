"""The page that compares runs, and the program."""

from pathlib import Path

import pytest
from made_up_run import CONFIG, change_json, summary, write_json, write_run
from reading import Read

from roli_fast.report import write
from roli_fast.report.__main__ import main

TEST = "Accuracy on the test images of each run"


def compared(*runs: Path) -> Read:
    """The page of several runs."""
    return Read(write(runs[0], runs[1:]).read_text(encoding="utf-8"))


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs of one name, the second at another rate."""
    first, second = write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b" / "run")
    (second / "config.yaml").write_text(CONFIG.replace("lr: 2.5e-05", "lr: 0.001"))
    return first, second


def test_the_methods_of_all_runs_stand_side_by_side(runs: tuple[Path, Path]) -> None:
    page = compared(*runs)
    names = ["a/run: RoLI", "a/run: RanLI", "b/run: RoLI", "b/run: RanLI"]
    rows = page.table(TEST)
    assert [row[0] for row in rows[1:]] == names
    assert rows[3][1:3] == ["82.0 ± 2.8 %", "68.0 ± 2.8 %"]
    assert len(page.table("Head and residual of each stage")) == 7
    assert len(page.table("Paired differences")) == 3
    assert not (runs[0] / "report.html").exists()
    assert (runs[0] / "comparison.html").is_file()
    differing = [["field", "a/run", "b/run"], ["finetune.optimizer.lr", "2.5e-05", "0.001"]]
    assert page.table("Fields of the configuration that differ") == differing
    for word in ("accuracies do not compare", "different seeds", "Not finished"):
        assert word not in page.text


def test_runs_that_do_not_compare_are_warned_of(runs: tuple[Path, Path]) -> None:
    change_json(runs[1] / "environment.json", identity={"data test images": "other"})
    attack = summary()["attack"] | {"eps": 0.1}
    change_json(runs[1] / "summary.json", attack=attack)
    text = compared(*runs).text
    assert "have not all the same test images" in text
    assert "tested by different attacks or radii" in text
    for run in runs:
        (run / "environment.json").unlink()
    (runs[1] / "summary.json").unlink()
    page = compared(*runs)
    assert "does not tell whether the runs have the same test images" in page.text
    assert "Not finished or not tested: b/run." in page.text


def test_runs_with_other_attacks_have_a_column_each(runs: tuple[Path, Path]) -> None:
    tree = summary()
    for method in tree["methods"].values():
        for test in (method["test"], *(seed["test"] for seed in method["per_seed"])):
            test["robust_accuracy"] = {"apgd-20": 0.5}
    tree["comparisons"] = []
    write_json(runs[1] / "summary.json", tree)
    rows = compared(*runs).table(TEST)
    assert rows[0][1:4] == ["clean", "robust, pgd-10", "robust, apgd-20"]
    assert rows[1][2:4] == ["68.0 ± 2.8 %", "–"] and rows[3][2:4] == ["–", "50.0 %"]


def test_the_program_writes_and_says_where(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(runs[0])]) == 0
    assert capsys.readouterr().out == f"Wrote {runs[0] / 'report.html'}.\n"
    out = runs[0].parent / "pages" / "both.html"
    assert main([*map(str, runs), "--out", str(out)]) == 0
    assert out.is_file()
    assert main([str(runs[0] / "none")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: `run`: expected a run directory") and "none" in error

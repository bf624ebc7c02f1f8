"""Studies: which rows there are, and what is said of them, from numbers made by hand."""

import json
from itertools import combinations
from pathlib import Path

import pytest
import yaml

import study
from roli_fast.train.cli import parse

GIVEN = {"images": "photos", "start": "weights.safetensors", "weights": "weights.safetensors"}
SEEN = {
    "plain": {"clean": ["1111", "1110"], "pgd": ["1100", "1000"]},
    "other": {"clean": ["1111", "1111"], "pgd": ["1110", "1010"]},
}


def row(name: str) -> dict:
    accuracy = {c: [own.count("1") / 4 for own in seeds] for c, seeds in SEEN[name].items()}
    stages = [{"name": "probe", "train_seconds": 1.5}, {"name": "finetune", "train_seconds": 2.5}]
    return {"methods": {"roli": {"stages": stages, "accuracy": accuracy, "seen": SEEN[name]}}}


def test_several_maps_of_rows_are_crossed() -> None:
    rows = study.rows_of({"rows": [{"a": "--x 1", "b": None}, {"c": "--y 2", "d": "--y 3"}]})
    assert rows == {
        "a / c": ["--x", "1", "--y", "2"],
        "a / d": ["--x", "1", "--y", "3"],
        "b / c": ["--y", "2"],
        "b / d": ["--y", "3"],
    }


def test_differences_are_paired_by_image_and_seed() -> None:
    """Third image: right in both seeds for one, in none for the other; half of 95 % by hand."""
    mean, half = study.difference(SEEN["other"]["pgd"], SEEN["plain"]["pgd"])
    assert mean == 25.0 and half == pytest.approx(100 * 1.96 * 0.5 / 2)
    found = study.compared({name: row(name) for name in SEEN}, "plain")
    own = found["other"]["methods"]["roli"]
    assert own["difference"]["pgd"] == [mean, half] and "seen" not in own
    assert "difference" not in found["plain"]["methods"]["roli"]
    lines = study.table(found, "plain").splitlines()
    assert lines[0] == "| | clean | pgd | pgd - plain | seconds |"
    assert lines[2:] == [
        "| plain | 87.5 ± 17.7 | 37.5 ± 17.7 |  | 4 |",
        "| other | 100.0 ± 0.0 | 62.5 ± 17.7 | +25.0 ± 49.0 | 4 |",
    ]


@pytest.mark.parametrize("name", sorted(path.stem for path in study.STUDIES.glob("*.yaml")))
def test_every_row_of_a_study_is_a_run(name: str) -> None:
    found = yaml.safe_load((study.STUDIES / f"{name}.yaml").read_text(encoding="utf-8"))
    assert found["about"] and set(found) <= {"about", "flags", "rows", "against"}
    rows, seen = study.rows_of(found), []
    assert found.get("against", next(iter(rows))) in rows
    for own in rows.values():
        words = study.filled([*found["flags"].split(), *own], GIVEN)
        beside = [] if "--data" in words else ["--data", "digits"]
        seen.append(parse([*words, *beside]).experiment)
    assert all(a != b for a, b in combinations(seen, 2))
    with pytest.raises(SystemExit, match="--set thing="):
        study.filled(["{thing}"], GIVEN)


def test_finished_rows_are_read_and_the_results_keep_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in ("fp32", "merge"):
        (tmp_path / name).mkdir()
        made = row("plain" if name == "fp32" else "other")
        (tmp_path / name / "row.json").write_text(json.dumps(made), encoding="utf-8")
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    (tmp_path / "guard.json").write_text(json.dumps({"before": {"fp32": row("plain")}}))
    study.main(["guard", "--runs", str(tmp_path), "--only", "fp32,merge", "--setting", "now"])
    found = json.loads((tmp_path / "guard.json").read_text(encoding="utf-8"))
    assert list(found) == ["before", "now"] and list(found["now"]) == ["fp32", "merge"]
    assert "| merge | 100.0 ± 0.0 | 62.5 ± 17.7 | +25.0 ± 49.0 | 4 |" in capsys.readouterr().out

"""What a result file holds, how a target is judged, and how the table reads."""

import json
from pathlib import Path

import pytest

from harness.report import Options, Report, cases_of, line, table, target_line, times_of, verdict
from harness.timing import Times

TIMES = Times({"ours": [1.0, 10.0, 1.0], "theirs": [2.0, 20.0, 4.0]})
COLUMNS = {"theirs": {"forwards": 3, "backwards": 2}, "art": {"note": "not installed"}}


@pytest.mark.parametrize(
    ("value", "limits", "met"),
    [
        (2.5, {"at_least": 2.5}, True),
        (2.49, {"at_least": 2.5}, False),
        (1.02, {"at_most": 1.02}, True),
        (1.03, {"at_most": 1.02}, False),
        (0.0, {"at_most": 0.0}, True),
        (None, {"at_least": 2.5}, None),
    ],
)
def test_verdicts(value: float | None, limits: dict[str, float], met: bool | None) -> None:
    assert verdict("x", value, **limits)["met"] is met


def test_a_target_has_one_limit() -> None:
    with pytest.raises(ValueError, match="one limit"):
        verdict("x", 1.0)
    with pytest.raises(ValueError, match="one limit"):
        verdict("x", 1.0, at_least=1.0, at_most=2.0)


def test_a_result_file_says_where_how_and_what(tmp_path: Path) -> None:
    report = Report("pgd", Options(threads=1), tmp_path / "pgd-cpu.json")
    report.add("case", TIMES, "ours", COLUMNS)
    report.target("speed", 2.0, at_least=1.35)
    saved = json.loads((tmp_path / "pgd-cpu.json").read_text())
    machine = saved["machine"]
    assert {"cpu", "cpus", "threads", "load_before", "torch", "backend", "build"} <= set(machine)
    assert machine["torch"].startswith(machine["versions"]["torch"])
    mine, other, missing = saved["rows"]
    assert mine["ms"] == 1000 and mine["times_base"] == 1.0
    assert other["times_base"] == 2.0 and other["base"] == "ours" and other["forwards"] == 3
    assert other["rounds_ms"] == [2000, 20000, 4000] and other["quartiles_ms"] == [3000, 12000]
    assert missing == {"case": "case", "name": "art", "note": "not installed"}
    assert saved["targets"][0]["met"] is True
    assert cases_of(saved) == ["case"]
    assert times_of(saved, "case") == TIMES


def test_a_quick_run_is_not_judged() -> None:
    report = Report("pgd", Options(quick=True))
    report.target("speed", 2.0, at_least=1.35)
    assert report.targets[0]["met"] is None
    assert target_line("pgd", report.targets[0]).endswith("not judged")


def test_the_table_ends_with_the_targets() -> None:
    report = Report("pgd", Options())
    report.add("case", TIMES, "ours", {"art": {"note": "not installed: art"}})
    report.target("speed", 1.0, at_least=1.35)
    report.target("share", None, at_most=0.5)
    text = table([report.as_json()])
    *_, title, missed, unknown = text.splitlines()
    assert title == "targets"
    assert "1 >= 1.35" in missed and missed.endswith("MISSED")
    assert unknown.endswith("not measured")
    assert "not installed: art" in text


def test_a_row_shows_what_it_has() -> None:
    row = {"case": "c", "name": "n", "ms": 12.5, "roofline": 0.61, "peak_mb": 99.0}
    text = line("pgd", row)
    assert "12.5 ms" in text and "61 % of GEMM" in text and "99 MB peak" in text
    assert "passes" not in text

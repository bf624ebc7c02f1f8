"""Every case of every group as a benchmark: `pytest benchmarks --benchmark-only`.

A case times its candidates itself, interleaved, and plays the rounds of its base to
pytest-benchmark, whose groups, autosave and comparisons so hold for them; how many times as long
the others took in the same rounds is each benchmark's extra_info.
"""

from collections import deque

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from groups import cases_of
from harness.report import Report

_readings: deque[float] = deque()


def played() -> float:
    """The clock of the rounds that were measured already: each begins at 0."""
    return _readings.popleft()


# libraries that are years old warn of what newer ones have renamed
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.benchmark(timer=played)]


def test_throughput(benchmark: BenchmarkFixture, report: Report, group: str, case: str) -> None:
    report.timed = None
    before = len(report.rows)
    cases_of(group)[case](report)
    report.save()
    rows = report.rows[before:]
    if report.timed is None:
        pytest.skip("; ".join(row["note"] for row in rows if "note" in row))
    times, base = report.timed
    benchmark.group = f"{group}: {case}"
    where = {key: report.machine[key] for key in ("device", "threads", "backend")}
    ratios = {name: times.ratio(name, base) for name in times.seconds}
    quartiles = {name: times.quartiles(name) for name in times.seconds}
    benchmark.extra_info |= where | {"base": base, "times_base": ratios, "quartiles": quartiles}
    _readings.extend(moment for seconds in times.seconds[base] for moment in (0.0, seconds))
    benchmark.pedantic(lambda: None, rounds=len(times.seconds[base]))


@pytest.mark.parametrize("group", ["memory", "endtoend"])
def test_whole_processes(report: Report, group: str) -> None:
    """Peak memory and images a second; without --benchmark-only."""
    cases_of(group)["all"](report)
    report.save()
    assert all({"peak_mb", "images_per_second", "note"} & set(row) for row in report.rows)

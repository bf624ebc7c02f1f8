"""`pytest benchmarks --benchmark-only`: the options, a report for each group, and the one table."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from groups import GROUPS, cases_of
from harness import report as reports
from harness.report import Options, Report

BUSY = 0.5  # load before the run
REPORTS = pytest.StashKey[dict[str, Report]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """What to measure on, how long, and where results go."""
    group = parser.getgroup("throughput")
    group.addoption("--device", choices=("cpu", "cuda"), help="cuda where there is one")
    group.addoption("--threads", type=int, default=os.cpu_count() or 1)
    group.addoption("--scale", type=float, default=1.0, help="of every case's seconds")
    group.addoption("--out", type=Path, help="folder of the JSON files; without -k their own")
    group.addoption("--weights", default="", help="autoattack: a best.safetensors")
    group.addoption("--images_root", default="", help="autoattack: the images of the weights")
    group.addoption("--images", type=int, default=200, help="autoattack: how many")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each case of each group; tiny ones where -k asks for "quick"."""
    if "case" not in metafunc.fixturenames:
        return
    size = "quick" if "quick" in metafunc.config.option.keyword else "full"
    found = [
        pytest.param(group, case, id=f"{group}: {case}, {size}")
        for group in GROUPS
        for case in cases_of(group)
    ]
    metafunc.parametrize(("group", "case"), found)


@pytest.fixture(scope="session")
def options(request: pytest.FixtureRequest) -> Iterator[Options]:
    """What the command line says to every group."""
    given = request.config.option
    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    quick, before = "quick" in given.keyword, torch.get_num_threads()
    own = {name: getattr(given, name) for name in ("threads", "scale", "weights", "images")}
    torch.set_num_threads(given.threads)
    yield Options(device=device, quick=quick, root=given.images_root, **own)
    torch.set_num_threads(before)


@pytest.fixture
def report(request: pytest.FixtureRequest, options: Options, group: str) -> Report:
    """The report of the test's group, in results/ where all groups are measured, whole.

    A group of which -k takes some cases alone leaves no file: it would replace that of all.
    """
    config = request.config
    out = config.option.out or (None if config.option.keyword else reports.RESULTS)
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    taken = [call for call in calls if call and call.params.get("group") == group]
    out = out if len(taken) >= len(cases_of(group)) else None
    found = config.stash.setdefault(REPORTS, {})
    if group not in found:
        # AutoAttack on a network of one's own has another file than on digits
        digits = "-digits" if group == "autoattack" and not options.weights else ""
        path = out / f"{group}{digits}-{options.device}.json" if out else None
        found[group] = Report(group, options, path)
    return found[group]


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The one table comes last."""
    found = config.stash.get(REPORTS, {})
    if found:
        terminalreporter.write_line(reports.table([one.as_json() for one in found.values()]))


def pytest_report_header(config: pytest.Config) -> str | None:
    """A warning where other work would be measured along."""
    load = os.getloadavg()[0]
    return (
        f"this machine is busy (load {load:.1f}): measure on an idle one" if load > BUSY else None
    )

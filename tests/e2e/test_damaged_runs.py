"""A run whose files a disk or an editor has damaged: every program names the file, or goes on.

A damage is one file of a small run and one change of it, both drawn from a number.
"""

import logging
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from analysed_run import FLAGS
from damages import change

from roli_fast import errors
from roli_fast.analyze import main as analyze
from roli_fast.evaluate.__main__ import main as evaluate
from roli_fast.report.__main__ import main as report
from roli_fast.train.__main__ import main as train

Program = Callable[[], int]
Told = Callable[[], str]

READ = ("*.json", "*.jsonl", "*.yaml", "*.npz", "*.safetensors", "run.lock")


def programs(run: Path, whole: Path, file: str) -> Iterator[tuple[str, Program]]:
    """What reads `file` of a run."""
    model = ["--model", str(run / "seed-0" / "roli"), "--attacks=pgd-1", "--images=4"]
    yield "report", lambda: report([str(run)])
    yield "compare", lambda: report([str(whole), str(run), "--out", str(run / "both.html")])
    if file.startswith("evaluation"):
        yield "go on", lambda: evaluate(["--out", str(run / "evaluation"), "--resume"])
        return
    if file.endswith(("config.yaml", ".safetensors", "result.json")):
        yield "evaluate", lambda: evaluate([*model, "--out", str(run / "new")])
    if (run / "summary.json").exists():
        yield "analyze", lambda: analyze([str(run)])
    yield "train", lambda: train(["--run_dir", str(run), "--resume"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with an evaluation in it."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train(["--run_dir", str(run), *FLAGS, "--methods=roli,ranli", "--report=true"]) == 0
    model = ["--model", str(run / "seed-0" / "roli"), "--attacks=pgd-1", "--images=6"]
    assert evaluate([*model, "--out", str(run / "evaluation")]) == 0
    return run


@pytest.fixture(scope="module")
def begun(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped before its second method."""
    run = Path(shutil.copytree(whole, tmp_path_factory.mktemp("begun") / "run"))
    (run / "summary.json").unlink()
    shutil.rmtree(run / "seed-0" / "ranli")
    return run


def raw(run: Path, file: Path, whole: Path, told: Told) -> list[str]:
    """Programs that ended on something else than an error of ours that names the file."""
    found = []
    for name, program in programs(run, whole, file.relative_to(run).as_posix()):
        try:
            status = program()
        except Exception as error:  # what must not happen
            found.append(f"{name}: {type(error).__name__}: {error}"[:200])
            continue
        text = told()
        # a configuration that was cut short may be a whole one of something else
        cut = name == "evaluate" and "`data`: expected the images" in text
        # the page, which analyze writes too, is of all files together
        page = name in ("report", "compare", "analyze") and run.name in text
        if status == 2 and file.name not in text and not cut and not page:
            found.append(f"{name} names no {file.name}: {text[-300:]}")
        for line in text.splitlines():
            kind = line.split(": ")[1] if line.startswith("no ") and ": " in line else ""
            if kind.endswith("Error") and not hasattr(errors, kind):
                found.append(f"{name}: {line}"[:200])
    return found


def try_damage(number: int, whole: Path, folder: Path, told: Told) -> list[str]:
    """One damage of a copy of `whole`; what is wrong with how the programs take it."""
    draw = random.Random(number)
    run = folder / f"run-{number}"
    shutil.copytree(whole, run)
    found = sorted(path for pattern in READ for path in run.rglob(pattern))
    file = draw.choice(found)
    file.write_bytes(change(file.read_bytes(), file.name, draw))
    problems = raw(run, file, whole, told)
    shutil.rmtree(run)
    return [f"{number} {file.relative_to(run)}: {text}" for text in problems]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> Told:
    """What was logged and printed since the last call."""
    caplog.set_level(logging.INFO)

    def read() -> str:
        out = capsys.readouterr()
        text = "\n".join([*caplog.messages, out.out, out.err])
        caplog.clear()
        return text

    return read


@pytest.mark.slow
@pytest.mark.parametrize("begin", range(0, 700, 50))
def test_700_damages(begin: int, whole: Path, begun: Path, tmp_path: Path, told: Told) -> None:
    found = []
    for number in range(begin, begin + 50):
        found += try_damage(number, begun if number % 4 == 0 else whole, tmp_path, told)
    assert found == []

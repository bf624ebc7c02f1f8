"""The README's figures are those of the result files, and its example of the ops runs."""

import shlex
import subprocess
import sys

import pytest
import torch
from shared_data import REPOSITORY
from tiny_models import images, tiny

from roli_fast import analyze
from roli_fast.data import Batch
from roli_fast.train.cli import parse

TEXT = (REPOSITORY / "README.md").read_text(encoding="utf-8")
TRAINED = [
    line.removeprefix("python -m roli_fast.train")
    for line in TEXT.replace("\\\n", " ").splitlines()
    if line.startswith("python -m roli_fast.train ") and "..." not in line and "$" not in line
]
"""Flags of the commands that stand there whole."""

ANALYSED = [
    line.partition("#")[0].removeprefix("python -m roli_fast.analyze")
    for line in TEXT.splitlines()
    if line.startswith("python -m roli_fast.analyze ")
]
"""Likewise, of the analysis."""


def test_its_commands_are_found() -> None:
    assert len(TRAINED) >= 7 and sum("--recipe" in flags for flags in TRAINED) >= 5


@pytest.mark.parametrize("flags", TRAINED, ids=lambda flags: " ".join(flags.split())[:60])
def test_a_command_of_the_readme_is_a_run(flags: str) -> None:
    parse(shlex.split(flags))


@pytest.mark.parametrize("flags", ANALYSED, ids=str.strip)
def test_a_command_of_the_readme_is_an_analysis(flags: str) -> None:
    assert [str(run) for run in analyze.parse(shlex.split(flags)).runs] == ["RUN"]


def test_the_readme_shows_what_the_results_say() -> None:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "readme.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or "run: python benchmarks/readme.py"


def test_the_sparse_recovery_of_the_readme_finds_the_numbers(capsys) -> None:
    (program,) = (part for part in TEXT.split("```python\n")[1:] if "seen, z, centre" in part)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile(program.split("```")[0], "README.md", "exec"), {})
    assert float(capsys.readouterr().out.strip().removeprefix("tensor(").rstrip(")")) < 0.01


def test_the_analysis_of_the_readme_runs() -> None:
    (program,) = (
        part for part in TEXT.split("```python\n")[1:] if "from roli_fast import PGD, a" in part
    )
    batches = [Batch(images(6, 3, 8, 8), torch.arange(6) % 5, torch.arange(6))]
    here = {"start": tiny(seed=0), "tuned": tiny(seed=1), "batches": batches, "train": batches}
    here |= {"rate": 1e-3, "n": 6, "optimizer": None}
    exec(compile(program.split("```")[0], "README.md", "exec"), here)
    assert 0 < here["step"].ft_ratio and here["step"].size > 0

"""The README's figures are those of the result files, and its example of the ops runs."""

import shlex
import subprocess
import sys

import pytest
import torch
from shared_data import REPOSITORY

from roli_fast.train.cli import parse

TEXT = (REPOSITORY / "README.md").read_text(encoding="utf-8")
TRAINED = [
    line.removeprefix("python -m roli_fast.train")
    for line in TEXT.replace("\\\n", " ").splitlines()
    if line.startswith("python -m roli_fast.train ") and "..." not in line and "$" not in line
]
"""Flags of the commands that stand there whole."""


def test_its_commands_are_found() -> None:
    assert len(TRAINED) >= 7 and sum("--recipe" in flags for flags in TRAINED) >= 5


@pytest.mark.parametrize("flags", TRAINED, ids=lambda flags: " ".join(flags.split())[:60])
def test_a_command_of_the_readme_is_a_run(flags: str) -> None:
    parse(shlex.split(flags))


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

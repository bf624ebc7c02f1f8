"""The README's figures are those of the result files, and its example of the ops runs."""

import subprocess
import sys

import torch
from shared_data import REPOSITORY


def test_the_readme_shows_what_the_results_say() -> None:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "readme.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or "run: python benchmarks/readme.py"


def test_the_sparse_recovery_of_the_readme_finds_the_numbers(capsys) -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (program,) = (part for part in text.split("```python\n")[1:] if "seen, z, centre" in part)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile(program.split("```")[0], "README.md", "exec"), {})
    assert float(capsys.readouterr().out.strip().removeprefix("tensor(").rstrip(")")) < 0.01

"""The README's figures are those of the result files."""

import subprocess
import sys

from shared_data import REPOSITORY


def test_the_readme_shows_what_the_results_say() -> None:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "readme.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or "run: python benchmarks/readme.py"

"""How every command ends."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import roli_fast
from roli_fast import doctor
from roli_fast.__main__ import COMMANDS, main

PACKAGE = Path(roli_fast.__file__).parent
PROGRAM = """
from roli_fast.running.command import run_command
def main():
    {body}
    return 3
run_command(main)
"""


def ended(body: str) -> tuple[int, bytes]:
    """Exit status and errors of a program whose reader has gone before it writes."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", PROGRAM.format(body=body)]
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=PACKAGE.parent)
    finally:
        os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("print('x' * 100000)", 1),  # raised by print
        ("print('x')", 1),  # raised when stdout is flushed
        ("pass", 3),
    ],
)
def test_without_a_reader(body: str, status: int) -> None:
    code, said = ended(body)
    assert code == status
    assert said == b""


def test_every_command_ends_so() -> None:
    programs = [path for path in PACKAGE.rglob("*.py") if '__main__"' in path.read_text()]
    assert len(programs) >= 7
    for path in programs:
        last = path.read_text().rstrip().splitlines()[-1]
        assert re.fullmatch(r"    run_command\(main\)", last), path


def test_the_package_names_its_commands_and_its_version(capsys: pytest.CaptureFixture) -> None:
    assert main([]) == 0 and main(["--version"]) == 0 and main(["nonsense"]) == 2
    said = capsys.readouterr().out.splitlines()
    assert roli_fast.__version__ in said
    named = re.findall(r"python -m roli_fast\.(\w+)", COMMANDS)
    folders = [path.parent.name for path in PACKAGE.glob("*/__main__.py")]
    files = [p.stem for p in PACKAGE.glob("[a-z]*.py") if '__main__"' in p.read_text()]
    assert sorted(named) == sorted([*folders, *files])


def test_the_doctor_has_a_help(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        doctor.main(["--help"])
    assert ended.value.code == 0 and "usage" in capsys.readouterr().out

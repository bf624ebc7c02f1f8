"""The spin limit is set in our own programs, and nowhere else."""

import os
import subprocess
import sys

import pytest

SHOW = "import os; print(os.environ.get('GOMP_SPINCOUNT'))"


def clean_environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    return {**kept, **more}


def test_importing_the_package_leaves_the_process_alone() -> None:
    code = f"import roli_fast; {SHOW}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment(), capture_output=True, text=True
    )
    assert done.stdout.strip() == "None", done.stderr


@pytest.mark.parametrize(
    ("argv", "more", "expected"),
    [
        (["python", "-m", "roli_fast.train"], {}, "5000"),
        (["python", "-m", "roli_fast.train"], {"GOMP_SPINCOUNT": "7"}, "7"),
        (["python", "-m", "roli_fast.train"], {"OMP_WAIT_POLICY": "active"}, None),
        (["python", "-m", "pytest", "x"], {}, None),
    ],
)
def test_a_setting_of_the_user_wins(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], more: dict[str, str], expected: str | None
) -> None:
    from roli_fast.spinning import limit_spinning

    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # noted, so that it is taken back afterwards
        monkeypatch.delenv(name)
    for name, value in more.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "orig_argv", argv)
    monkeypatch.delitem(sys.modules, "torch")
    limit_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == expected

"""The spin limit is set in our own programs, and nowhere else."""

import os
import sys

import pytest

from roli_fast.spinning import limit_spinning


@pytest.mark.parametrize(
    ("argv", "more", "expected"),
    [
        (["python", "-m", "roli_fast.train"], {}, "5000"),
        (["python", "-m", "roli_fast.train"], {"GOMP_SPINCOUNT": "7"}, "7"),
        (["python", "-m", "roli_fast.train"], {"OMP_WAIT_POLICY": "active"}, None),
        (["python", "-m", "pytest", "x"], {}, None),
        (["python", "-c", "import roli_fast"], {}, None),
    ],
)
def test_a_setting_of_the_user_wins(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], more: dict[str, str], expected: str | None
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # noted, so that it is taken back afterwards
        monkeypatch.delenv(name)
    for name, value in more.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "orig_argv", argv)
    monkeypatch.delitem(sys.modules, "torch")
    limit_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == expected

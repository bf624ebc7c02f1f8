"""PEFT itself, the other side; and a short AutoAttack."""

import functools
from typing import Any

import pytest

from roli_fast import attacks as ours
from roli_fast.compat.torchattacks import searches


@pytest.fixture(scope="module")
def hf() -> Any:
    """The other side, of the extra `test`."""
    return pytest.importorskip("peft", reason="PEFT is not installed: pip install '.[test]'")


@pytest.fixture
def short_autoattack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps and ten queries, for the attacks with torchattacks' interface."""
    short = functools.partial(ours.AutoAttack, steps=3, n_queries=10)
    fake = type("ours", (), {**vars(ours), "AutoAttack": staticmethod(short)})
    monkeypatch.setattr(searches, "ours", fake)

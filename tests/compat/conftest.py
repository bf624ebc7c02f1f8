"""A short AutoAttack."""

import functools
from dataclasses import replace
from typing import Any

import pytest

import roli_fast.compat.torchattacks as torchattacks
from roli_fast import attacks as ours


@pytest.fixture
def short_autoattack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps and ten queries, for the attacks with torchattacks' interface."""
    kind: Any = torchattacks.AutoAttack
    short = functools.partial(ours.AutoAttack, steps=3, n_queries=10)
    monkeypatch.setattr(kind, "row", replace(kind.row, kind=short))

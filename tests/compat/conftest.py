"""PEFT itself, the other side."""

from typing import Any

import pytest


@pytest.fixture(scope="module")
def hf() -> Any:
    """The other side, of the extra `test`."""
    return pytest.importorskip("peft", reason="PEFT is not installed: pip install '.[test]'")

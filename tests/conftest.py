"""Fixtures for all tests, and what `pytest -m gpu` needs on a machine with little installed."""

from pathlib import Path

import pytest
from shared_data import SharedData, find


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """pyproject.toml's own option of pytest-benchmark, where that is not installed."""
    if not pluginmanager.hasplugin("benchmark"):
        parser.addoption("--benchmark-skip", action="store_true")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m gpu` files without such a test are not imported: what they need may be missing."""
    if config.option.markexpr != "gpu" or not collection_path.name.startswith("test_"):
        return None
    return "mark.gpu" not in collection_path.read_text(encoding="utf-8") or None


@pytest.fixture(scope="session")
def shared_data() -> SharedData:
    """Real images; a test that asks for an archive that is not there is skipped."""
    return find()

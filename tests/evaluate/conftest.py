"""The evaluation that others are compared with."""

from pathlib import Path

import pytest
from evaluated_models import SAVED, assess


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of `FLAGS`, in one process and without a stop; read only."""
    folder = tmp_path_factory.mktemp("straight") / "out"
    assess(folder, SAVED)
    return folder

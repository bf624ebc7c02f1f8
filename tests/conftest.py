"""Fixtures for all tests."""

import pytest
from shared_data import SharedData, find


@pytest.fixture(scope="session")
def shared_data() -> SharedData:
    """Real images; a test that asks for an archive that is not there is skipped."""
    return find()

"""Fixtures of the ops' tests."""

import pytest
from cases import UPDATES

from roli_fast import ops
from roli_fast.ops import native


@pytest.fixture(params=native.BACKENDS)
def backend(request):
    """Every test that asks for it runs on both implementations."""
    with ops.use_backend(request.param):
        yield request.param


@pytest.fixture(params=UPDATES)
def op(request):
    """Every op that updates a batch."""
    return UPDATES[request.param]

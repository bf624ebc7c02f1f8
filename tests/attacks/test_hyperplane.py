"""The norms that FAB knows."""

import pytest

from roli_fast.attacks.hyperplane import check_norm
from roli_fast.errors import ArgumentError


def test_a_norm_without_a_projection_is_refused() -> None:
    with pytest.raises(ArgumentError, match="`norm`: expected one of: linf, l2, l1, got 'l7'"):
        check_norm("l7")

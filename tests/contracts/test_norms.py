"""What every registered norm must do."""

from collections.abc import Callable

import pytest
from norm_checks import CHECKS

from roli_fast.errors import ArgumentError
from roli_fast.norms import NORMS, Norm
from roli_fast.norms.base import check_offers


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", NORMS.names())
def test_every_norm(name: str, check: Callable[[Norm], None]) -> None:
    check(NORMS[name])


def test_a_norm_without_a_part_is_refused_by_name() -> None:
    message = "`norm`: expected one of: l1, l2, linf, the norms that have `fab_step_`, got 'l7'"
    with pytest.raises(ArgumentError, match=message):
        check_offers("l7", "fab_step_")

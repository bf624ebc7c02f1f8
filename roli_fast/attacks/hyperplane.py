"""The norms in which a distance to a hyperplane is known."""

import math

from roli_fast.errors import ArgumentError, describe

ORDERS = {"linf": math.inf, "l2": 2.0, "l1": 1.0}
"""Norm -> p."""

DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}
"""Norm -> q with 1/p + 1/q = 1: a plane is |gap| / ||weight||_q away, where no box limits."""


def check_norm(norm: str | None) -> None:
    """Raise for a norm in which no projection on a plane is known."""
    if norm is not None and norm not in ORDERS:
        raise ArgumentError(describe("norm", f"one of: {', '.join(ORDERS)}", repr(norm)))

"""Costs add up, and taken apart are what came last."""

from roli_fast.engine import Cost


def test_sum_and_difference() -> None:
    first, second = Cost(1, 2, 3, 4), Cost(10, 20, 30, 40)
    both = first + second
    assert (both.forwards, both.backwards) == (11, 22)
    assert (both.forward_images, both.backward_images) == (33, 44)
    last = both - first
    assert last == second
    assert (last.forward_images, last.backward_images) == (30, 40)

"""Derived seeds: stable, distinct, and typed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roli_fast.errors import ArgumentTypeError
from roli_fast.seeds import derive_seed, derived_generator

PARTS = st.lists(st.integers() | st.text(max_size=4), max_size=4)


def test_values_never_change() -> None:
    """A change here changes every split, order and augmentation of earlier runs."""
    assert derive_seed() == 8238016292129134938
    assert derive_seed("augment", 0, 3, 41) == 3837363917424328381


@given(PARTS, PARTS)
def test_different_parts_give_different_seeds(a: list[int | str], b: list[int | str]) -> None:
    assert (derive_seed(*a) == derive_seed(*b)) == (a == b)
    assert 0 <= derive_seed(*a) < 2**63


def test_type_length_and_order_count_and_other_types_are_refused() -> None:
    seeds = [derive_seed(*p) for p in [("a", "bc"), ("ab", "c"), ("1",), (1,), (1, 2), (2, 1)]]
    assert len(set(seeds)) == len(seeds)
    assert derive_seed(5) == derive_seed(np.int64(5)) == derive_seed(torch.tensor(5))  # pyright: ignore
    for part in (1.0, None, torch.tensor(0.5)):
        with pytest.raises(ArgumentTypeError, match="expected integers and strings"):
            derive_seed(part)  # pyright: ignore


def test_generators_repeat_and_differ() -> None:
    draws = [torch.rand(4, generator=derived_generator("x", seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])

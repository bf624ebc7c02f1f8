"""The draws of augmentation, against Philox in plain Python."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from roli_fast.data.draws import Draws
from roli_fast.ops.native import use_backend
from roli_fast.seeds import derive_seed


def philox(key: int, counter: int) -> list[int]:
    """Philox4x32-10 (Salmon et al. 2011) on integers of any size."""
    words = [(counter >> shift) % 2**32 for shift in (0, 32, 64, 96)]
    keys = [key % 2**32, key >> 32]
    for _ in range(10):
        left, right = words[0] * 0xD2511F53, words[2] * 0xCD9E8D57
        words = [
            right >> 32 ^ words[1] ^ keys[0], right % 2**32,
            left >> 32 ^ words[3] ^ keys[1], left % 2**32,
        ]  # fmt: skip
        keys = [(keys[0] + 0x9E3779B9) % 2**32, (keys[1] + 0xBB67AE85) % 2**32]
    return words


def numbers(draws: Draws, count: int) -> Tensor:
    return torch.stack([draws.below(2**25) for _ in range(count)], dim=1)


def test_philox_here_is_the_published_one() -> None:
    """The first known answer of the authors' test vectors: everything zero."""
    assert philox(0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_number_is_a_word_of_the_samples_own_counter(backend: str) -> None:
    generator = torch.Generator().manual_seed(derive_seed("augment", 3, 7))
    key = int(torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator)) % 2**64
    ids = torch.tensor([0, 41, 2**40])
    with use_backend(backend):  # pyright: ignore[reportArgumentType]
        found = numbers(Draws.of(3, 7, ids, 6), 6)
    for row, sample in zip(found.tolist(), ids.tolist(), strict=True):
        words = philox(key, sample << 64) + philox(key, (sample << 64) + 1)
        # the upper 24 bits of a signed word and half a step, moved from (-1, 1) to (0, 1)
        expected = [2 * (((word + 2**31) % 2**32) >> 8) + 1 for word in words[:6]]
        assert [abs(a - b) for a, b in zip(row, expected, strict=True)] == [0] * 6


@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=9, unique=True), st.integers(0, 9))
def test_a_sample_draws_the_same_in_any_batch(ids: list[int], extra: int) -> None:
    together = numbers(Draws.of(5, 1, torch.tensor(ids), 3), 3)
    alone = [numbers(Draws.of(5, 1, torch.tensor([i]), 3 + extra), 3) for i in ids]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(numbers(Draws.of(5, 1, torch.tensor(ids), 3).row(0), 3), alone[0])


def test_seed_epoch_and_sample_change_them() -> None:
    ids = torch.arange(50)
    found = [numbers(Draws.of(*place, ids, 3), 3) for place in ((0, 0), (0, 1), (1, 0))]
    assert len({n for table in found for n in table.flatten().tolist()}) == 3 * 150


def test_integers_and_chances_are_uniform() -> None:
    draws = Draws.of(0, 0, torch.arange(9000), 3)
    counts = torch.bincount(draws.below(9), minlength=9)
    assert len(counts) == 9 and (counts - 1000).abs().max() < 120  # four standard deviations
    assert abs(draws.chance(0.25).double().mean() - 0.25) < 0.02
    assert torch.equal(draws.below(1), torch.zeros(9000, dtype=torch.int64))


def test_the_ends_of_the_range() -> None:
    draws = Draws(torch.tensor([[2.0**-25], [1 - 2.0**-25]], dtype=torch.float64).repeat(1, 3))
    assert draws.below(9).tolist() == [0, 8]
    assert draws.chance(1.0).tolist() == [True, True]
    assert draws.chance(0.0).tolist() == [False, False]


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    Draws.of(0, 0, torch.arange(4), 3)
    assert torch.equal(before, torch.get_rng_state())
    assert Draws.none(4).row(2) is not None

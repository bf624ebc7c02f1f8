"""Transforms against pixels worked out by hand, and their draws against Philox in plain Python."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional

from roli_fast.data.transforms import (
    CenterCrop,
    Compose,
    HorizontalFlip,
    RandomCrop,
    RandomShift,
    Resize,
    Transform,
    evaluation_transform,
    training_transform,
    uniform_draws,
)
from roli_fast.errors import DataError
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


class TestDraws:
    @pytest.mark.parametrize("backend", ["native", "reference"])
    def test_a_number_is_a_word_of_the_samples_own_counter(self, backend: str) -> None:
        # the first known answer of the authors' test vectors: everything zero
        assert philox(0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
        generator = torch.Generator().manual_seed(derive_seed("augment", 3, 7))
        key = int(torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator)) % 2**64
        ids = torch.tensor([0, 41, 2**40])
        with use_backend(backend):  # pyright: ignore[reportArgumentType]
            found = uniform_draws(3, 7, ids, 6)
        for row, sample in zip(found.tolist(), ids.tolist(), strict=True):
            words = philox(key, sample << 64) + philox(key, (sample << 64) + 1)
            # the upper 24 bits of a signed word and half a step, moved from (-1, 1) to (0, 1)
            expected = [2 * (((word + 2**31) % 2**32) >> 8) + 1 for word in words[:6]]
            assert [number * 2**25 for number in row] == expected

    def test_a_sample_draws_the_same_in_any_batch(self) -> None:
        ids = torch.tensor([7, 0, 2**62, 3])
        together, before = uniform_draws(5, 1, ids, 3), torch.get_rng_state()
        alone = [uniform_draws(5, 1, ids[i : i + 1], 3 + i)[:, :3] for i in range(4)]
        assert torch.equal(together, torch.cat(alone))
        assert torch.equal(before, torch.get_rng_state())
        found = [uniform_draws(*place, torch.arange(50), 3) for place in ((0, 0), (0, 1), (1, 0))]
        assert len({number for table in found for number in table.flatten().tolist()}) == 3 * 150

    def test_the_ends_of_the_range(self) -> None:
        ends = torch.tensor([[2.0**-25], [1 - 2.0**-25]], dtype=torch.float64)
        images = torch.arange(9, dtype=torch.uint8).expand(2, 1, 1, 9)
        assert RandomCrop(1)(images, ends.repeat(1, 2)).flatten().tolist() == [0, 8]
        assert torch.equal(HorizontalFlip(1.0)(images, ends), images.flip(-1))
        assert torch.equal(HorizontalFlip(0.0)(images, ends), images)


def image(rows: list[list[int]]) -> Tensor:
    """Three equal channels."""
    return torch.tensor(rows, dtype=torch.uint8).expand(3, -1, -1)


def draws(transform: Transform, count: int) -> Tensor:
    return uniform_draws(0, 0, torch.arange(count), transform.draws)


def many(transform: Transform, x: Tensor, count: int = 200) -> Tensor:
    """`x` transformed as `count` samples with draws of their own: (count, h, w), one channel."""
    out = transform(x.expand(count, *x.shape), draws(transform, count))
    assert out.dtype == torch.uint8 and torch.equal(out, out[:, :1].expand_as(out))
    return out[:, 0]


def outcomes(transform: Transform, x: Tensor) -> set[tuple[tuple[int, ...], ...]]:
    """Every different result of many draws."""
    return {tuple(map(tuple, out)) for out in many(transform, x).tolist()}


def apply(transform: Transform, x: Tensor) -> Tensor:
    return transform(x[None], draws(transform, 1))[0]


def test_shift_reaches_the_nine_places_and_fills_with_black() -> None:
    assert outcomes(RandomShift(1), image([[1, 2], [3, 4]])) == {
        ((4, 0), (0, 0)), ((3, 4), (0, 0)), ((0, 3), (0, 0)),
        ((2, 0), (4, 0)), ((1, 2), (3, 4)), ((0, 1), (0, 3)),
        ((0, 0), (2, 0)), ((0, 0), (1, 2)), ((0, 0), (0, 1)),
    }  # fmt: skip


def test_flip_mirrors_left_to_right_with_its_probability() -> None:
    x = image([[1, 2, 3], [4, 5, 6]])
    assert outcomes(HorizontalFlip(), x) == {((1, 2, 3), (4, 5, 6)), ((3, 2, 1), (6, 5, 4))}
    flipped = many(HorizontalFlip(0.3), image([[1, 2]]), 2000)[:, 0, 0] == 2
    assert abs(flipped.double().mean() - 0.3) < 0.04  # four standard deviations


def test_random_crop_reaches_every_window_equally_often() -> None:
    x = image([[1, 2, 3], [4, 5, 6]])
    assert outcomes(RandomCrop(2), x) == {((1, 2), (4, 5)), ((2, 3), (5, 6))}
    assert outcomes(RandomCrop(1, padding=1), image([[7]])) == {((0,),), ((7,),)}
    drawn = many(RandomCrop(1), image([[0, 1, 2, 3]]), 4000).flatten()
    counts = torch.bincount(drawn.int(), minlength=4)
    assert (counts - 1000).abs().max() < 120  # four standard deviations


def test_center_crop_takes_the_middle() -> None:
    x = torch.arange(16, dtype=torch.uint8).view(1, 4, 4).expand(3, -1, -1)
    assert apply(CenterCrop(2), x)[0].tolist() == [[5, 6], [9, 10]]
    assert torch.equal(apply(CenterCrop(4), x), x)


def test_resize_sets_the_short_side_and_averages_when_it_shrinks() -> None:
    assert apply(Resize(6), torch.zeros(3, 12, 20, dtype=torch.uint8)).shape == (3, 6, 10)
    assert apply(Resize(6), torch.zeros(3, 20, 12, dtype=torch.uint8)).shape == (3, 10, 6)
    exact = image([[1, 2], [3, 4]])
    assert torch.equal(apply(Resize(2), exact), exact)
    # antialiased: a line that plain bilinear sampling would step over leaves grey behind
    x = torch.zeros(3, 16, 16, dtype=torch.uint8)
    x[:, 4] = 255
    small = apply(Resize(4), x)
    assert small[0, 1].min() > 20  # rows 4 to 7 become row 1, sampled between 5 and 6
    assert abs(small.float().mean() - 255 / 16) < 3  # no light is lost


def test_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(DataError, match=r"`image`: expected at least 4 pixels a side, got 2x3"):
        apply(RandomCrop(4), torch.zeros(3, 2, 3, dtype=torch.uint8))


@pytest.mark.parametrize("size", [32, 48, 65])
@pytest.mark.parametrize("make", [training_transform, evaluation_transform])
def test_a_batch_gives_what_its_images_give_alone(
    make: Callable[[int], Transform], size: int
) -> None:
    """Resized up and down, padded and not, cropped and flipped; the input stays what it was."""
    images, transform = torch.randint(256, (12, 3, 48, 48), dtype=torch.uint8), make(size)
    before, found = images.clone(), draws(transform, 12)
    alone = [transform(images[i : i + 1], found[i : i + 1]) for i in range(12)]
    assert torch.equal(transform(images, found), torch.cat(alone))
    assert torch.equal(images, before)


def test_geometry_is_torchvisions() -> None:
    """The same corners and flips, moved by other code."""
    images = torch.randint(256, (64, 3, 8, 10), dtype=torch.uint8)
    both = Compose((RandomCrop(7, 2), HorizontalFlip(0.4)))
    found, expected = draws(both, 64), []
    for x, (top, left, flip) in zip(images, found.tolist(), strict=True):
        x = functional.crop(functional.pad(x, [2] * 4), int(6 * top), int(8 * left), 7, 7)
        expected.append(functional.hflip(x) if flip < 0.4 else x)
    assert torch.equal(both(images, found), torch.stack(expected))


def test_each_step_takes_its_own_draws() -> None:
    """Worked out by hand for draws of 0.99: the last place each time."""
    wide = image([[1, 2, 3], [4, 5, 6], [7, 8, 9]])[None]
    steps = Compose((RandomCrop(2), HorizontalFlip(1.0), RandomCrop(1)))
    last = torch.full((1, steps.draws), 0.99, dtype=torch.float64)
    assert steps(wide, last)[0, 0].tolist() == [[8]]  # 5 6 / 8 9 -> 6 5 / 9 8


@pytest.mark.parametrize(("size", "resized"), [(224, 256), (384, 438), (448, 512), (64, 64)])
def test_defaults_are_the_published_ones(size: int, resized: int) -> None:
    padding = 4 if size <= 64 else 0
    steps = Resize(resized), RandomCrop(size, padding), HorizontalFlip(0.5)
    assert training_transform(size) == Compose(steps)
    assert evaluation_transform(size) == Compose((Resize(resized), CenterCrop(size)))

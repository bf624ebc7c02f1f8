"""Transforms against pixels worked out by hand, and their draws against Philox in plain Python."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional

from roli_fast.data.transforms import (
    Crop,
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


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_draw_is_a_word_of_the_samples_own_counter(backend: str) -> None:
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


def test_a_sample_draws_the_same_in_any_batch() -> None:
    ids = torch.tensor([7, 0, 2**62, 3])
    together, before = uniform_draws(5, 1, ids, 3), torch.get_rng_state()
    alone = [uniform_draws(5, 1, ids[i : i + 1], 3 + i)[:, :3] for i in range(4)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(before, torch.get_rng_state())
    found = [uniform_draws(*place, torch.arange(50), 3) for place in ((0, 0), (0, 1), (1, 0))]
    assert len({number for table in found for number in table.flatten().tolist()}) == 3 * 150


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


def test_a_padded_crop_reaches_the_nine_places_and_fills_with_black() -> None:
    shift = Crop(2, padding=1, random=True)
    assert outcomes(shift, image([[1, 2], [3, 4]])) == {
        ((4, 0), (0, 0)), ((3, 4), (0, 0)), ((0, 3), (0, 0)),
        ((2, 0), (4, 0)), ((1, 2), (3, 4)), ((0, 1), (0, 3)),
        ((0, 0), (2, 0)), ((0, 0), (1, 2)), ((0, 0), (0, 1)),
    }  # fmt: skip


def test_windows_are_equally_likely_and_flips_have_their_probability() -> None:
    drawn = many(Crop(1, random=True), image([[0, 1, 2, 3]]), 4000).flatten()
    counts = torch.bincount(drawn.int(), minlength=4)
    assert (counts - 1000).abs().max() < 120  # four standard deviations
    square = image([[1, 2], [3, 4]])
    flip = Crop(2, random=True, flip=0.3)
    assert outcomes(flip, square) == {((1, 2), (3, 4)), ((2, 1), (4, 3))}
    flipped = many(flip, square, 2000)[:, 0, 0] == 2
    assert abs(flipped.double().mean() - 0.3) < 0.04  # four standard deviations


def test_the_ends_of_the_range_are_the_ends_of_the_image() -> None:
    ends = torch.tensor([[2.0**-25], [1 - 2.0**-25]], dtype=torch.float64).repeat(1, 3)
    row = torch.arange(9, dtype=torch.uint8).expand(2, 1, 1, 9)
    assert Crop(1, random=True)(row, ends).flatten().tolist() == [0, 8]
    squares = torch.arange(4, dtype=torch.uint8).view(1, 1, 2, 2).expand(2, -1, -1, -1)
    assert torch.equal(Crop(2, random=True, flip=1.0)(squares, ends), squares.flip(-1))
    assert torch.equal(Crop(2, random=True)(squares, ends), squares)


def test_without_draws_the_middle_is_taken_and_resizing_averages_when_it_shrinks() -> None:
    none = torch.empty(1, 0)
    rows = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
    assert Crop(2)(rows, none)[0, 0].tolist() == [[5, 6], [9, 10]]
    x = torch.zeros(1, 3, 16, 20, dtype=torch.uint8)
    x[..., 4, :] = 255
    small = Crop(4, 4)(x, none)
    assert small.shape == (1, 3, 4, 4)
    # antialiased: a line that plain bilinear sampling would step over leaves grey behind
    assert small[0, 0, 1].min() > 20  # rows 4 to 7 become row 1, sampled between 5 and 6
    assert abs(small.float().mean() - 255 / 16) < 3  # no light is lost
    assert torch.equal(Crop(16, 16)(x, none), x[..., 2:18])


def test_a_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(DataError, match=r"`image`: expected at least 4 pixels a side, got 2x3"):
        Crop(4, random=True)(torch.zeros(1, 3, 2, 3, dtype=torch.uint8), torch.rand(1, 3))


@pytest.mark.parametrize("size", [32, 48, 65])
@pytest.mark.parametrize("make", [training_transform, evaluation_transform])
def test_a_batch_gives_what_its_images_give_alone(make, size: int) -> None:
    """Resized up and down, padded and not, cropped and flipped; the input stays what it was."""
    images, transform = torch.randint(256, (12, 3, 48, 48), dtype=torch.uint8), make(size)
    before, found = images.clone(), draws(transform, 12)
    alone = [transform(images[i : i + 1], found[i : i + 1]) for i in range(12)]
    assert torch.equal(transform(images, found), torch.cat(alone))
    assert torch.equal(images, before)


def test_geometry_is_torchvisions() -> None:
    """The same corners and flips, moved by other code."""
    images = torch.randint(256, (64, 3, 8, 10), dtype=torch.uint8)
    both = Crop(7, padding=2, random=True, flip=0.4)
    found, expected = draws(both, 64), []
    for x, (top, left, flip) in zip(images, found.tolist(), strict=True):
        x = functional.crop(functional.pad(x, [2] * 4), int(6 * top), int(8 * left), 7, 7)
        expected.append(functional.hflip(x) if flip < 0.4 else x)
    assert torch.equal(both(images, found), torch.stack(expected))


@pytest.mark.parametrize(("size", "resized"), [(224, 256), (384, 438), (64, 64)])
def test_defaults_are_the_published_ones(size: int, resized: int) -> None:
    padding = 4 if size <= 64 else 0
    assert training_transform(size) == Crop(size, resized, padding, random=True, flip=0.5)
    assert evaluation_transform(size) == Crop(size, resized)

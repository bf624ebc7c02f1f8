"""Transforms against pixels worked out by hand."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional

from roli_fast.data.draws import Draws
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
    transformed,
)
from roli_fast.errors import DataError


def image(rows: list[list[int]]) -> Tensor:
    """Three equal channels."""
    return torch.tensor(rows, dtype=torch.uint8).expand(3, -1, -1)


def draws(transform: Transform, count: int, seed: int = 0) -> Draws:
    return Draws.of(seed, 0, torch.arange(count), transform.draws)


def many(transform: Transform, x: Tensor, count: int = 200) -> Tensor:
    """`x` transformed as `count` samples with draws of their own: (count, h, w), one channel."""
    out = transformed(transform, x.expand(count, *x.shape), draws(transform, count))
    assert out.dtype == torch.uint8 and torch.equal(out, out[:, :1].expand_as(out))
    return out[:, 0]


def outcomes(transform: Transform, x: Tensor) -> set[tuple[tuple[int, ...], ...]]:
    """Every different result of many draws."""
    return {tuple(map(tuple, out)) for out in many(transform, x).tolist()}


def apply(transform: Transform, x: Tensor) -> Tensor:
    return transformed(transform, x[None], draws(transform, 1))[0]


def test_shift_reaches_the_nine_places_and_fills_with_black() -> None:
    assert outcomes(RandomShift(1), image([[1, 2], [3, 4]])) == {
        ((4, 0), (0, 0)), ((3, 4), (0, 0)), ((0, 3), (0, 0)),
        ((2, 0), (4, 0)), ((1, 2), (3, 4)), ((0, 1), (0, 3)),
        ((0, 0), (2, 0)), ((0, 0), (1, 2)), ((0, 0), (0, 1)),
    }  # fmt: skip


def test_flip_mirrors_left_to_right() -> None:
    x = image([[1, 2, 3], [4, 5, 6]])
    mirrored = ((3, 2, 1), (6, 5, 4))
    assert outcomes(HorizontalFlip(), x) == {((1, 2, 3), (4, 5, 6)), mirrored}
    assert outcomes(HorizontalFlip(1.0), x) == {mirrored}
    assert outcomes(HorizontalFlip(0.0), x) == {((1, 2, 3), (4, 5, 6))}


def test_flip_has_its_probability() -> None:
    flipped = many(HorizontalFlip(0.3), image([[1, 2]]), 2000)[:, 0, 0] == 2
    assert abs(flipped.double().mean() - 0.3) < 0.04  # four standard deviations


def test_random_crop_reaches_every_window() -> None:
    x = image([[1, 2, 3], [4, 5, 6]])
    assert outcomes(RandomCrop(2), x) == {((1, 2), (4, 5)), ((2, 3), (5, 6))}
    padded = outcomes(RandomCrop(1, padding=1), image([[7]]))
    assert padded == {((0,),), ((7,),)}


def test_random_crop_is_uniform() -> None:
    drawn = many(RandomCrop(1), image([[0, 1, 2, 3]]), 4000).flatten()
    counts = torch.bincount(drawn.int(), minlength=4)
    assert (counts - 1000).abs().max() < 120  # four standard deviations


def test_center_crop_takes_the_middle() -> None:
    x = torch.arange(16, dtype=torch.uint8).view(1, 4, 4).expand(3, -1, -1)
    assert apply(CenterCrop(2), x)[0].tolist() == [[5, 6], [9, 10]]
    assert torch.equal(apply(CenterCrop(4), x), x)


def test_resize_sets_the_short_side_and_keeps_the_shape() -> None:
    assert apply(Resize(6), torch.zeros(3, 12, 20, dtype=torch.uint8)).shape == (3, 6, 10)
    assert apply(Resize(6), torch.zeros(3, 20, 12, dtype=torch.uint8)).shape == (3, 10, 6)
    exact = image([[1, 2], [3, 4]])
    assert torch.equal(apply(Resize(2), exact), exact)


def test_resize_averages_when_it_shrinks() -> None:
    """Antialiased: a line that plain bilinear sampling would step over leaves grey behind."""
    x = torch.zeros(3, 16, 16, dtype=torch.uint8)
    x[:, 4] = 255
    small = apply(Resize(4), x)
    assert small[0, 1].min() > 20  # rows 4 to 7 become row 1, sampled between 5 and 6
    assert abs(small.float().mean() - 255 / 16) < 3  # no light is lost


def test_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(DataError, match=r"`image`: expected at least 4 pixels a side, got 2x3"):
        apply(RandomCrop(4), torch.zeros(3, 2, 3, dtype=torch.uint8))


def test_same_draws_same_result_and_input_unchanged() -> None:
    x = torch.randint(256, (3, 40, 50), dtype=torch.uint8)
    before, transform = x.clone(), training_transform(32)
    assert torch.equal(apply(transform, x), apply(transform, x)) and torch.equal(x, before)


@pytest.mark.parametrize("size", [32, 48, 65])
@pytest.mark.parametrize("make", [training_transform, evaluation_transform])
def test_a_batch_gives_what_its_images_give_alone(
    make: Callable[[int], Transform], size: int
) -> None:
    """Resized up and down, padded and not, cropped and flipped."""
    images, transform = torch.randint(256, (12, 3, 48, 48), dtype=torch.uint8), make(size)
    found = draws(transform, 12)
    alone = [transformed(transform, x[None], found.row(i)) for i, x in enumerate(images)]
    assert torch.equal(transformed(transform, images, found), torch.cat(alone))


def test_geometry_is_torchvisions() -> None:
    """The same corners and flips, moved by other code."""
    images, transform = torch.randint(256, (64, 3, 8, 10), dtype=torch.uint8), RandomCrop(7, 2)
    both = Compose((transform, HorizontalFlip(0.4)))
    found, again = draws(both, 64), draws(both, 64)
    top, left, flip = again.below(6), again.below(8), again.chance(0.4)
    expected = []
    for x, i, j, mirrored in zip(images, top.tolist(), left.tolist(), flip, strict=True):
        x = functional.crop(functional.pad(x, [2] * 4), i, j, 7, 7)
        expected.append(functional.hflip(x) if mirrored else x)
    assert torch.equal(transformed(both, images, found), torch.stack(expected))


def test_crops_of_crops_and_flips_of_flips() -> None:
    """Worked out by hand for draws of 0.99: the last place each time."""
    x = image([[1, 2, 3]]).expand(1, -1, -1, -1)
    last = Draws(torch.full((1, 8), 0.99, dtype=torch.float64))  # the last place, and no flip
    cut = RandomCrop(1)
    assert transformed(cut, x, last)[0, 0].tolist() == [[3]]
    flip, wide = HorizontalFlip(1.0), image([[1, 2, 3], [4, 5, 6], [7, 8, 9]])[None]
    steps = Compose((RandomCrop(2), flip, RandomCrop(1)))
    last = Draws(torch.full((1, 8), 0.99, dtype=torch.float64))
    assert transformed(steps, wide, last)[0, 0].tolist() == [[8]]  # 5 6 / 8 9 -> 6 5 / 9 8
    last = Draws(torch.full((1, 8), 0.99, dtype=torch.float64))
    assert torch.equal(transformed(Compose((flip, flip)), wide, last), wide)


@pytest.mark.parametrize(("size", "resized"), [(224, 256), (384, 438), (448, 512), (64, 64)])
def test_defaults_are_the_published_ones(size: int, resized: int) -> None:
    padding = 4 if size <= 64 else 0
    steps = Resize(resized), RandomCrop(size, padding), HorizontalFlip(0.5)
    assert training_transform(size) == Compose(steps)
    assert evaluation_transform(size) == Compose((Resize(resized), CenterCrop(size)))


def test_repr_is_the_configuration() -> None:
    assert repr(RandomCrop(32, 4)) == "RandomCrop(size=32, padding=4)"

"""Transforms against pixels worked out by hand."""

import pytest
import torch
from torch import Tensor

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
)
from roli_fast.errors import DataError


def image(rows: list[list[int]]) -> Tensor:
    """Three equal channels."""
    return torch.tensor(rows, dtype=torch.uint8).expand(3, -1, -1)


def outcomes(transform: Transform, x: Tensor, draws: int = 200) -> set[tuple[tuple[int, ...], ...]]:
    """Every different result over many seeds, one channel of it."""
    found = set()
    for seed in range(draws):
        out = transform(x, torch.Generator().manual_seed(seed))
        assert out.dtype == torch.uint8 and torch.equal(out, out[:1].expand_as(out))
        found.add(tuple(map(tuple, out[0].tolist())))
    return found


def apply(transform: Transform, x: Tensor) -> Tensor:
    return transform(x, torch.Generator())


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
    generator, x = torch.Generator().manual_seed(0), image([[1, 2]])
    flipped = sum(int(HorizontalFlip(0.3)(x, generator)[0, 0, 0]) == 2 for _ in range(2000))
    assert abs(flipped / 2000 - 0.3) < 0.04  # four standard deviations


def test_random_crop_reaches_every_window() -> None:
    x = image([[1, 2, 3], [4, 5, 6]])
    assert outcomes(RandomCrop(2), x) == {((1, 2), (4, 5)), ((2, 3), (5, 6))}
    padded = outcomes(RandomCrop(1, padding=1), image([[7]]))
    assert padded == {((0,),), ((7,),)}


def test_random_crop_is_uniform() -> None:
    generator, x = torch.Generator().manual_seed(0), image([[0, 1, 2, 3]])
    drawn = [int(RandomCrop(1)(x, generator)[0, 0, 0]) for _ in range(4000)]
    counts = torch.bincount(torch.tensor(drawn), minlength=4)
    assert (counts - 1000).abs().max() < 120  # four standard deviations


def test_center_crop_takes_the_middle() -> None:
    x = torch.arange(16, dtype=torch.uint8).view(1, 4, 4).expand(3, -1, -1)
    assert apply(CenterCrop(2), x)[0].tolist() == [[5, 6], [9, 10]]
    assert apply(CenterCrop(4), x) is x


def test_resize_sets_the_short_side_and_keeps_the_shape() -> None:
    assert apply(Resize(6), torch.zeros(3, 12, 20, dtype=torch.uint8)).shape == (3, 6, 10)
    assert apply(Resize(6), torch.zeros(3, 20, 12, dtype=torch.uint8)).shape == (3, 10, 6)
    exact = image([[1, 2], [3, 4]])
    assert apply(Resize(2), exact) is exact


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


def test_same_generator_state_same_result_and_input_unchanged() -> None:
    x = torch.randint(256, (3, 40, 50), dtype=torch.uint8)
    before, transform = x.clone(), training_transform(32)
    first, again = (transform(x, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, again) and torch.equal(x, before)


@pytest.mark.parametrize(("size", "resized"), [(224, 256), (384, 438), (448, 512), (64, 64)])
def test_defaults_are_the_published_ones(size: int, resized: int) -> None:
    padding = 4 if size <= 64 else 0
    steps = Resize(resized), RandomCrop(size, padding), HorizontalFlip(0.5)
    assert training_transform(size) == Compose(steps)
    assert evaluation_transform(size) == Compose((Resize(resized), CenterCrop(size)))


def test_repr_is_the_configuration() -> None:
    assert repr(RandomCrop(32, 4)) == "RandomCrop(size=32, padding=4)"

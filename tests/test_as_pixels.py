"""uint8 images that stay in the ball."""

import torch

from roli_fast.threat import as_pixels

LEVELS = torch.arange(256)


def test_towards_the_image_and_levels_as_they_are() -> None:
    x = torch.tensor([[100.0, 100, 100, 100, 0, 255]]) / 255
    x_adv = torch.tensor([[100.9, 99.1, 103.5, 96.5, 0.9, 254.1]]) / 255
    assert as_pixels(x_adv, x).tolist() == [[100, 100, 103, 97, 0, 255]]
    assert torch.equal(as_pixels(LEVELS / 255, torch.rand(256)), LEVELS.to(torch.uint8))


def test_whole_levels_of_a_change_are_kept_whatever_fp32_makes_of_them() -> None:
    for levels in (1, 2, 8, 16):
        for sign in (1, -1):
            x = LEVELS[levels:-levels] / 255
            moved = as_pixels(x + sign * levels / 255, x).int()
            assert torch.equal(
                moved - LEVELS[levels:-levels], torch.full_like(moved, sign * levels)
            )


def test_between_levels_the_nearest_to_the_image() -> None:
    """No level lies between 10.6 and 10.9, one between 10.6 and 11.3, two between it and 8.5."""
    x = torch.full((4,), 10.6) / 255
    x_adv = torch.tensor([10.9, 11.3, 8.5, 10.2]) / 255
    assert as_pixels(x_adv, x).tolist() == [11, 11, 9, 11]
    assert torch.equal(as_pixels(x, x), torch.full((4,), 11, dtype=torch.uint8))

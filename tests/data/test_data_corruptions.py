"""Each corruption against numbers worked out by hand, and against other libraries."""

import colorsys
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_attacks import generator as seeded
from torch import Tensor

from roli_fast.data.corruptions import CORRUPTIONS, SEVERITIES, digital, weather


def change(name: str, x: Tensor, *setting: Any, seed: int = 0) -> Tensor:
    """The corruption with its numbers given, before values are cut off and rounded."""
    return CORRUPTIONS[name].change(x, seeded(seed), *setting)


def uniform(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=seeded(7))


def image(*shape: int) -> Tensor:
    return torch.randint(256, shape, generator=seeded(8), dtype=torch.uint8)


class TestNoise:
    def test_gaussian_has_its_deviation(self) -> None:
        """100,000 draws: the mean is within 4 * 0.1 / sqrt(1e5) = 0.0013, the spread within 1 %."""
        noise = change("gaussian_noise", torch.full((1, 250, 400), 0.5), 0.1) - 0.5
        assert noise.mean().abs() < 0.0013 and abs(noise.std() - 0.1) < 0.001

    def test_shot_counts_photons(self) -> None:
        """Poisson: at half white and 12 photons the mean count is 6 and so is the variance."""
        counts = change("shot_noise", torch.full((1, 250, 400), 0.5), 12) * 12
        assert torch.allclose(counts, counts.round(), atol=1e-4)
        assert abs(counts.mean() - 6) < 0.04 and abs(counts.var() - 6) < 0.15
        assert (change("shot_noise", torch.zeros(1, 9, 9), 12) == 0).all()

    def test_impulse_hits_its_share_half_of_it_white(self) -> None:
        """100,000 values, 9 % hit: 9,000 within 4 * sqrt(8190) = 362; half of them white."""
        out = change("impulse_noise", torch.full((1, 250, 400), 0.5), 0.09)
        black, white = int((out == 0).sum()), int((out == 1).sum())
        assert abs(black + white - 9000) < 362 and abs(white - black) < 4 * 9000**0.5
        assert int((out == 0.5).sum()) == 100_000 - black - white

    def test_channels_are_hit_one_by_one(self) -> None:
        out = change("impulse_noise", torch.full((3, 200, 200), 0.5), 0.09) != 0.5
        assert (out.sum(0) == 3).float().mean() < 0.003  # 0.09 ** 3 = 0.0007


class TestDigital:
    def test_contrast_by_hand(self) -> None:
        """Means 0.5 and 0.2; a quarter of each deviation stays."""
        x = torch.tensor([[[0.1, 0.9]], [[0.0, 0.4]]])
        expected = torch.tensor([[[0.4, 0.6]], [[0.15, 0.25]]])
        assert torch.allclose(change("contrast", x, 0.25), expected)

    def test_pixelate_by_hand(self) -> None:
        """Four pixels become two become four: means of pairs, of 10 and 30, 100 and 200."""
        row = torch.tensor([10, 30, 100, 200]) / 255
        out = change("pixelate", row.expand(1, 4, 4), 0.5)
        assert (out[0] * 255).round().tolist() == [[20, 20, 150, 150]] * 4

    def test_pixelate_has_its_number_of_blocks(self) -> None:
        """0.65 of 32 is 20 blocks a side; 0.25 of 224 is 56."""
        for side, severity, blocks in ((32, 5, 20), (224, 5, 56)):
            ramp = torch.linspace(0, 255, side).to(torch.uint8).expand(1, side, side)
            out = CORRUPTIONS["pixelate"](ramp, severity, seeded())
            assert len(out.unique()) == blocks

    @pytest.mark.parametrize("severity", SEVERITIES)
    def test_jpeg_is_pillows(self, severity: int) -> None:
        """The published images were compressed by Pillow with its usual options."""
        x = (torch.nn.functional.avg_pool2d(image(3, 65, 51).float(), 3, 1)).to(torch.uint8)
        quality = CORRUPTIONS["jpeg_compression"].setting(severity, 32)[0]
        file = io.BytesIO()
        Image.fromarray(x.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=int(quality))
        expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
        out = CORRUPTIONS["jpeg_compression"](x, severity, seeded())
        assert (out.int() - expected.int()).abs().float().mean() < 0.1
        assert (out.int() - x.int()).abs().float().mean() > 1

    def test_elastic_without_strength_or_shift_is_the_identity(self) -> None:
        x = uniform(3, 33, 47)
        assert torch.allclose(change("elastic_transform", x, 0, 0, 0), x, atol=1e-5)

    def test_elastic_affine_moves_three_points(self) -> None:
        """What is read at the new place of a point is the point, its row and its column."""
        height, width, reach = 33, 47, 4.0
        rows, columns = torch.meshgrid(
            torch.arange(float(height)), torch.arange(float(width)), indexing="ij"
        )
        read = torch.stack(digital._affine(rows, columns, reach, seeded(3)), dim=-1).double()
        drawn = torch.rand(3, 2, generator=seeded(3), dtype=torch.float64)
        before = torch.tensor([[27, 34], [27, 12], [5, 12]]).double()  # (16, 23) +- 11
        after = before + reach * (2 * drawn - 1)
        a, b = read[0, 0], torch.stack([read[1, 0] - read[0, 0], read[0, 1] - read[0, 0]])
        assert torch.allclose(a + after @ b, before, atol=1e-3)
        straight = a + rows[..., None] * b[0] + columns[..., None] * b[1]
        assert torch.allclose(read, straight, atol=1e-3)

    def test_elastic_lengths_are_the_published_ones(self) -> None:
        kind = CORRUPTIONS["elastic_transform"]
        assert [224 * c for c in kind.setting(1, 224)] == pytest.approx([488, 170.8, 24.4])
        assert [32 * c for c in kind.setting(5, 32)] == pytest.approx([3.2, 0.96, 0.96])


class TestWeather:
    def test_brightness_is_v_of_hsv(self) -> None:
        x = image(3, 9, 9)
        x[:, 0, 0], x[:, 0, 1] = 0, 255  # black becomes grey, white stays
        out = CORRUPTIONS["brightness"](x, 4, seeded())
        for pixel, found in zip(x.flatten(1).T.tolist(), out.flatten(1).T.tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*(level / 255 for level in pixel))
            expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.2, 1))
            assert [level * 255 for level in expected] == pytest.approx(found, abs=0.51)

    def test_fog_is_added_and_scaled(self) -> None:
        """With the same clouds: fog(x) - fog(0.5 at the maximum) is (x - y) m / (m + d)."""
        x = uniform(3, 20, 20) * 0.8
        x[0, 0, 0] = 0.8
        y = torch.full_like(x, 0.8)
        difference = change("fog", x, 2, 2) - change("fog", y, 2, 2)
        assert torch.allclose(difference, (x - y) * 0.8 / 2.8, atol=1e-6)
        assert not change("fog", torch.zeros(3, 8, 8), 2, 2).any()

    def test_snow_over_black_is_the_flakes_twice(self) -> None:
        """Half of the rest is added to black: (1 - 0.8) * 0.5; the flakes match turned around."""
        out = change("snow", torch.zeros(3, 40, 50), 0.3, 0.3, 1.25, 0.65, 14, 12, 0.8)
        assert torch.allclose(out, out.flip(1, 2), atol=1e-6)
        assert abs(out.min() - 0.1) < 0.02 and out.max() > 0.2

    def test_snow_without_flakes_pales_the_image(self) -> None:
        """Grey 0.299 r + 0.587 g + 0.114 b; the larger of x and 1.5 grey + 0.5 counts 0.4."""
        x = torch.tensor([0.9, 0.1, 0.2]).view(3, 1, 1).expand(3, 8, 8)
        grey = 0.299 * 0.9 + 0.587 * 0.1 + 0.114 * 0.2  # 0.3506: 1.5 grey + 0.5 = 1.0259
        out = change("snow", x, 0.1, 0.2, 1, 99, 8, 3, 0.6)
        expected = [0.6 * value + 0.4 * (1.5 * grey + 0.5) for value in (0.9, 0.1, 0.2)]
        assert out[:, 0, 0].tolist() == pytest.approx(expected, abs=1e-6)

    def test_frost_is_a_mixture_with_ice(self) -> None:
        """The same ice over both: their difference is the image's share of the difference."""
        x, y = uniform(3, 24, 24), torch.zeros(3, 24, 24)
        difference = change("frost", x, 0.75, 0.45, 5) - change("frost", y, 0.75, 0.45, 5)
        assert torch.allclose(difference, 0.75 * x, atol=1e-6)
        ice = weather.ice_crystals(24, 24, seeded())
        assert torch.allclose(change("frost", y, 0.6, 0.7, 1), 0.7 * ice)

    def test_ice_has_light_and_dark_and_differs_by_seed(self) -> None:
        panes = torch.stack([weather.ice_crystals(64, 64, seeded(seed)) for seed in range(4)])
        assert panes.min() >= 0 and panes.max() <= 1
        assert 0.3 < panes.mean() < 0.7 and (panes.std(dim=(1, 2, 3)) > 0.08).all()
        assert (panes[:, 2] >= panes[:, 0]).all()  # bluish
        assert (panes[0] - panes[1]).abs().mean() > 0.05

"""What every registered corruption must do."""

from collections import Counter

import pytest
import torch
from shared_data import SharedData
from torch import Generator, Tensor

from roli_fast.data import batches
from roli_fast.data.corruptions import CORRUPTIONS, SEVERITIES, Corruption, corrupted
from roli_fast.data.image_folder import ImageFolder
from roli_fast.data.pixels import ArrayPixels
from roli_fast.data.splits import ImageDataset
from roli_fast.data.transforms import evaluation_transform
from roli_fast.errors import ArgumentError, ArgumentTypeError

NO_DRAWS = {
    "brightness", "contrast", "defocus_blur", "jpeg_compression", "pixelate", "zoom_blur",
}  # fmt: skip


@pytest.fixture(params=CORRUPTIONS.names())
def kind(request: pytest.FixtureRequest) -> Corruption:
    return CORRUPTIONS[request.param]


def picture(height: int, width: int, channels: int = 3) -> Tensor:
    """A smooth pattern with some noise, full range of grey levels."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    layers = [127 + 90 * torch.sin(rows / (3 + c) + c) * torch.cos(columns / 4) for c in range(3)]
    noise = torch.randint(-30, 31, (3, height, width), generator=seeded(1))
    return (torch.stack(layers) + noise).clamp(0, 255).to(torch.uint8)[:channels]


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def test_fifteen_kinds_in_four_groups() -> None:
    groups = Counter(CORRUPTIONS[name].group for name in CORRUPTIONS)
    assert groups == {"noise": 3, "blur": 4, "weather": 4, "digital": 4}


def test_settings_follow_the_size_and_change_the_image(kind: Corruption) -> None:
    assert len(kind.large) == len(kind.small) == 5
    assert kind.setting(2, 64) == kind.small[1] and kind.setting(2, 65) == kind.large[1]
    for image in (picture(32, 32), picture(72, 80)):
        for severity in SEVERITIES:
            assert not torch.equal(kind(image, severity, seeded(0)), image)


def test_any_size_in_the_same_out(kind: Corruption) -> None:
    """Black, white and grey too: no division by zero, nothing but finite grey levels."""
    for size in ((33, 47), (70, 66), (3, 5), (1, 9), (1, 1)):
        for channels, severity in ((3, 1), (3, 5), (1, 3)):
            image = picture(*size, channels)
            before = image.clone()
            out = kind(image, severity, seeded(0))
            assert out.dtype == torch.uint8 and out.shape == image.shape
            assert torch.equal(image, before) and out.data_ptr() != image.data_ptr()
    for level in (0.0, 0.5, 1.0):
        flat = torch.full((3, 20, 20), level)
        assert kind.change(flat, seeded(0), *kind.setting(5, 20)).isfinite().all()


def test_the_generator_decides_and_nothing_else(kind: Corruption) -> None:
    image, before = picture(33, 47), torch.get_rng_state()
    first = kind(image, 3, seeded(5))
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert torch.equal(first, kind(image.clone(), 3, seeded(5)))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, kind(image, 3, seeded(6))) == (kind.name in NO_DRAWS)
    flipped = image.flip(2)
    assert torch.equal(kind(flipped, 3, seeded(5)), kind(flipped.contiguous(), 3, seeded(5)))


def test_grey_is_rgb_of_three_equal_channels(kind: Corruption) -> None:
    """But where the channels have draws of their own, or a colour: noise, and frost."""
    apart = kind.group == "noise" or kind.name == "frost"
    grey = picture(40, 50, 1)
    for severity in (1, 5):
        out = kind(grey.expand(3, -1, -1).contiguous(), severity, seeded(3)).int()
        equal = (out - kind(grey, severity, seeded(3)).int()).abs().max() <= 1
        assert bool(equal) != apart


@pytest.fixture(scope="module")
def photographs(shared_data: SharedData) -> dict[int, list[Tensor]]:
    """Side -> photographs: twelve small ones, six large ones."""
    found = {}
    roots = {32: shared_data.cifar10(per_class=20), 72: shared_data.caltech101() / "images"}
    for (size, root), count in zip(roots.items(), (12, 6), strict=True):
        test = ImageFolder(str(root), image_size=size).load().test.plain()
        chosen = torch.arange(count) * (len(test) // count)
        found[size] = list(test.raw(chosen).x)
    return found


TRADES = {
    32: {"elastic_transform", "glass_blur", "frost"},
    72: {"elastic_transform", "glass_blur", "frost", "snow", "fog"},
}
"""Kinds whose published severities trade one number for another: elastic_transform gives up a large
shift for small ripples, glass_blur more reach for fewer rounds, frost less of the image for more
ice, snow larger flakes for fewer, fog finer clouds at the same density. (motion_blur's 3 and 4 are
the same on small images, where half a Gaussian ends before the kernel does.)"""


def test_a_higher_severity_is_further_from_a_photograph(
    kind: Corruption, photographs: dict[int, list[Tensor]]
) -> None:
    """Mean absolute distance; an image has the same draws at all five."""
    for size, images in photographs.items():
        found = torch.zeros(5)
        for severity in SEVERITIES:
            for index, image in enumerate(images):
                out = kind(image, severity, seeded(index))
                found[severity - 1] += (out.float() - image.float()).abs().mean() / len(images)
        assert found.min() > 1 and found.max() < 128
        if kind.name not in TRADES[size]:
            assert (found.diff() >= 0).all(), found
        assert (found[4] > found[0]) == (kind.name != "elastic_transform")


class TestView:
    """`corrupted`: a split whose images are corrupted as they are read."""

    def dataset(self, count: int = 12, size: int = 16) -> ImageDataset:
        images = torch.stack([picture(size, size).roll(7 * row, 2) for row in range(count)])
        ids = torch.arange(count).flip(0)
        return ImageDataset(ArrayPixels(images), ids, torch.arange(count) % 3, size)

    def test_draws_depend_on_seed_sample_kind_and_severity_alone(self, kind: Corruption) -> None:
        """The same samples, labels and names; the same images in any batch and order."""
        plain = self.dataset()
        view = corrupted(plain, kind.name, 5, seed=1)
        whole, y, ids = view.batch(torch.arange(12))
        assert torch.equal(ids, plain.ids) and torch.equal(y, plain.labels)
        assert view.name(0) == plain.name(0) and whole.shape == (12, 3, 16, 16)
        assert not torch.equal(whole, plain.batch(torch.arange(12)).x)
        assert torch.equal(view[4][0], whole[4])
        assert torch.equal(view.subset([3, 9]).batch(torch.tensor([1])).x[0], whole[9])
        for batch in batches(view, batch_size=5, seed=7, epoch=3, shuffle=True):
            assert torch.equal(batch.x, whole[11 - batch.ids])

    def test_seed_and_severity_change_the_draws(self) -> None:
        def noise(severity: int, seed: int) -> Tensor:
            view = corrupted(self.dataset(), "gaussian_noise", severity, seed=seed)
            return view[0][0] - self.dataset()[0][0]

        assert not torch.equal(noise(1, 0), noise(1, 1))
        both = torch.stack([noise(1, 0).flatten(), noise(2, 0).flatten()])
        assert torch.corrcoef(both)[0, 1].abs() < 0.2  # 0.04 is one standard deviation

    def test_it_corrupts_at_the_size_that_the_model_sees(self) -> None:
        """Resized and cropped first, as for ImageNet-C, and never augmented."""
        large = torch.stack([picture(90, 70) for _ in range(3)])
        prepare = evaluation_transform(32)
        pixels, ids, labels = ArrayPixels(large), torch.arange(3), torch.zeros(3).long()
        view = corrupted(ImageDataset(pixels, ids, labels, 32, prepare, prepare), "contrast", 3)
        small = prepare(large[1:2], torch.empty(1, 0))[0]
        expected = CORRUPTIONS["contrast"](small, 3, Generator())
        assert view.augment is None and torch.equal(view[1][0], expected / 255)

    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
    def test_workers_change_nothing(self) -> None:
        view = corrupted(self.dataset(), "snow", 3)
        options = {"batch_size": 5, "seed": 0, "epoch": 0, "shuffle": False}
        found = torch.cat([batch.x for batch in batches(view, workers=2, **options)])
        assert torch.equal(found, view.batch(torch.arange(12)).x)


def test_errors_name_the_value() -> None:
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    for severity in (0, 6):
        with pytest.raises(ArgumentError, match="`severity`: expected an integer from 1 to 5"):
            CORRUPTIONS["fog"](image, severity, Generator())
        with pytest.raises(ArgumentError, match="`severity`"):
            corrupted(TestView().dataset(), "fog", severity)
    with pytest.raises(ArgumentError, match=r"`corruption`: expected one of: .*'rain'"):
        corrupted(TestView().dataset(), "rain", 1)
    with pytest.raises(ArgumentTypeError, match=r"`image`: expected uint8.*float32.*255"):
        CORRUPTIONS["fog"](image / 255, 1, Generator())

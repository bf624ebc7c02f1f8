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

SIZES = ((33, 47), (70, 66), (3, 5), (1, 9), (1, 1))


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


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "{}x{}".format(*size))
def test_any_size_in_the_same_out(kind: Corruption, size: tuple[int, int]) -> None:
    for channels, severity in ((3, 1), (3, 5), (1, 3)):
        image = picture(*size, channels)
        before = image.clone()
        out = kind(image, severity, seeded(0))
        assert out.dtype == torch.uint8 and out.shape == image.shape
        assert torch.equal(image, before) and out.data_ptr() != image.data_ptr()


def test_it_changes_the_image_at_every_severity(kind: Corruption) -> None:
    for size in ((32, 32), (72, 80)):
        image = picture(*size)
        for severity in SEVERITIES:
            assert not torch.equal(kind(image, severity, seeded(0)), image)


def test_the_generator_decides_and_nothing_else(kind: Corruption) -> None:
    image, before = picture(33, 47), torch.get_rng_state()
    first = kind(image, 3, seeded(5))
    assert torch.equal(first, kind(image, 3, seeded(5)))
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert torch.equal(first, kind(image.contiguous().clone(), 3, seeded(5)))
    assert torch.equal(torch.get_rng_state(), before)
    flipped = image.flip(2)
    assert torch.equal(kind(flipped, 3, seeded(5)), kind(flipped.contiguous(), 3, seeded(5)))


NO_DRAWS = {
    "brightness", "contrast", "defocus_blur", "jpeg_compression", "pixelate", "zoom_blur",
}  # fmt: skip


def test_another_seed_another_draw(kind: Corruption) -> None:
    same = torch.equal(kind(picture(32, 32), 4, seeded(1)), kind(picture(32, 32), 4, seeded(2)))
    assert same == (kind.name in NO_DRAWS)


def test_grey_is_rgb_of_three_equal_channels(kind: Corruption) -> None:
    """But where the channels have draws of their own, or a colour: noise, and frost."""
    apart = kind.group == "noise" or kind.name == "frost"
    grey = picture(40, 50, 1)
    for severity in (1, 5):
        out = kind(grey.expand(3, -1, -1).contiguous(), severity, seeded(3)).int()
        equal = (out - kind(grey, severity, seeded(3)).int()).abs().max() <= 1
        assert bool(equal) != apart


def test_a_flat_image_is_no_special_case(kind: Corruption) -> None:
    """Black, white and grey: no division by zero, nothing but finite grey levels."""
    for level in (0, 128, 255):
        image = torch.full((3, 20, 20), level, dtype=torch.uint8)
        setting = kind.setting(5, 20)
        assert kind.change(image / 255, seeded(0), *setting).isfinite().all()


def test_fifteen_kinds_in_four_groups() -> None:
    groups = Counter(CORRUPTIONS[name].group for name in CORRUPTIONS)
    assert groups == {"noise": 3, "blur": 4, "weather": 4, "digital": 4}


def test_five_settings_for_each_size(kind: Corruption) -> None:
    assert len(kind.large) == len(kind.small) == 5
    assert kind.setting(2, 64) == kind.small[1] and kind.setting(2, 65) == kind.large[1]


@pytest.fixture(scope="module")
def photographs(shared_data: SharedData) -> dict[int, list[Tensor]]:
    """Side -> twelve photographs."""
    roots = {32: shared_data.cifar10(12), 72: shared_data.caltech101() / "images"}
    found = {}
    for size, root in roots.items():
        test = ImageFolder(str(root), image_size=size).load().test.plain()
        chosen = test.batch(torch.arange(12) * (len(test) // 12)).x
        found[size] = list((chosen * 255).round().to(torch.uint8))
    return found


class TestOnRealImages:
    """A higher severity is further from the image, on the mean over twelve photographs.

    Not so where the published severities trade one number for another: elastic_transform gives up
    a large shift for small ripples, glass_blur more reach for fewer rounds, frost less of the image
    for more ice, snow larger flakes for fewer, fog finer clouds at the same density. motion_blur's
    3 and 4 are the same on small images, where half a Gaussian ends before the kernel does.
    """

    trades = {
        32: {"elastic_transform", "glass_blur", "frost"},
        72: {"elastic_transform", "glass_blur", "frost", "snow", "fog"},
    }

    def distances(self, kind: Corruption, images: list[Tensor]) -> Tensor:
        """Mean absolute distance at each severity; an image has the same draws at all five."""
        found = torch.zeros(5)
        for index, image in enumerate(images):
            for severity in SEVERITIES:
                out = kind(image, severity, seeded(index))
                found[severity - 1] += (out.float() - image.float()).abs().mean() / len(images)
        return found

    @pytest.mark.parametrize("size", [32, 72])
    def test_severity_grows(
        self, kind: Corruption, size: int, photographs: dict[int, list[Tensor]]
    ) -> None:
        found = self.distances(kind, photographs[size])
        assert found.min() > 1 and found.max() < 128
        if kind.name not in self.trades[size]:
            assert (found.diff() >= 0).all(), found
        assert (found[4] > found[0]) == (kind.name != "elastic_transform")


class TestView:
    """`corrupted`: a split whose images are corrupted as they are read."""

    def dataset(self, count: int = 12, size: int = 16) -> ImageDataset:
        images = torch.stack([picture(size, size).roll(7 * row, 2) for row in range(count)])
        ids = torch.arange(count).flip(0)
        return ImageDataset(ArrayPixels(images), ids, torch.arange(count) % 3, size)

    def test_it_is_the_corruption_of_the_same_samples(self, kind: Corruption) -> None:
        plain = self.dataset()
        view = corrupted(plain, kind.name, 2)
        assert torch.equal(view.ids, plain.ids) and torch.equal(view.labels, plain.labels)
        assert view.name(0) == plain.name(0)
        x, y, sample_id = view[4]
        assert (y, sample_id) == (int(plain.labels[4]), 7)
        assert x.dtype == torch.float32 and x.shape == (3, 16, 16)
        assert not torch.equal(x, plain[4][0])

    def test_draws_depend_on_seed_sample_kind_and_severity_alone(self, kind: Corruption) -> None:
        view = corrupted(self.dataset(), kind.name, 5, seed=1)
        whole = view.batch(torch.arange(12)).x
        one_by_one = torch.stack([view[index][0] for index in range(12)])
        assert torch.equal(whole, one_by_one)
        assert torch.equal(view.subset([3, 9]).batch(torch.tensor([1])).x[0], whole[9])
        for seed, epoch, size in ((0, 0, 5), (7, 3, 12)):
            order = batches(view, batch_size=size, seed=seed, epoch=epoch, shuffle=True)
            for batch in order:
                assert torch.equal(batch.x, whole[11 - batch.ids])

    def test_seed_and_severity_change_the_draws(self) -> None:
        def noise(severity: int, seed: int) -> Tensor:
            view = corrupted(self.dataset(), "gaussian_noise", severity, seed=seed)
            return view[0][0] - self.dataset()[0][0]

        first = noise(1, 0)
        assert not torch.equal(first, noise(1, 1))
        other = noise(2, 0)
        both = torch.stack([first.flatten(), other.flatten()])
        assert torch.corrcoef(both)[0, 1].abs() < 0.2  # 0.04 is one standard deviation

    def test_it_corrupts_at_the_size_that_the_model_sees(self) -> None:
        """Resized and cropped first, as for ImageNet-C, and never augmented."""
        large = torch.stack([picture(90, 70) for _ in range(3)])
        prepare = evaluation_transform(32)
        pixels, ids, labels = ArrayPixels(large), torch.arange(3), torch.zeros(3).long()
        plain = ImageDataset(pixels, ids, labels, 32, prepare)
        view = corrupted(plain, "contrast", 3)
        small = prepare(large[1:2], torch.empty(1, 0))[0]
        expected = CORRUPTIONS["contrast"](small, 3, Generator())
        assert torch.equal(view[1][0], expected / 255)
        augmented = ImageDataset(pixels, ids, labels, 32, prepare, prepare)
        assert corrupted(augmented, "contrast", 3).augment is None

    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
    def test_workers_change_nothing(self) -> None:
        view = corrupted(self.dataset(), "snow", 3)
        options = {"batch_size": 5, "seed": 0, "epoch": 0, "shuffle": False}
        for workers in (0, 2):
            found = torch.cat([batch.x for batch in batches(view, workers=workers, **options)])
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

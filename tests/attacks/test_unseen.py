"""Attacks that draw over an image: what each draws, by hand, and what all promise."""

import math
from typing import Any

import pytest
import torch
from scipy.fft import dctn
from tiny_attacks import generator, predicted
from tiny_models import Counting, Mixed, images, untouched
from torch import Tensor, nn

from roli_fast.attacks.unseen import (
    JPEG,
    UNSEEN,
    Elastic,
    Fog,
    Gabor,
    Snow,
    SparsePGD,
    cosines,
    diamond_square,
    quantisation,
)
from roli_fast.engine import Cost, Engine
from roli_fast.errors import ArgumentError
from roli_fast.threat import ThreatModel

X = images(6, 3, 12, 20)


@pytest.fixture(params=UNSEEN.names())
def attack(request: pytest.FixtureRequest) -> Any:
    return UNSEEN[request.param](steps=4)


class Flat(nn.Module):
    """Linear on images of any size, with random weights."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(x.shape[1:].numel(), 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


def test_it_tells_its_cost_and_who_is_fooled(attack: Any) -> None:
    model = Counting(Mixed())
    y = predicted(Mixed(), X)
    with untouched(model):
        result = attack.run(model, X, y, generator())
    assert result.cost == Cost(model.forwards, model.backwards) and model.forwards > 0
    assert result.x_adv.min() >= 0 and result.x_adv.max() <= 1
    assert torch.equal(result.fooled, predicted(Mixed().eval(), result.x_adv) != y)
    assert attack.label == f"{attack.name}-4"


def test_more_steps_raise_the_loss(attack: Any) -> None:
    """Where the first class is so far ahead that nobody is fooled and leaves."""
    flat, ahead = Flat(X), torch.tensor([9.0, 0.0, 0.0, 0.0])

    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return flat(x) + ahead

    y, losses = torch.zeros(6, dtype=torch.int64), []
    for steps in (1, 12):
        result = type(attack)(steps=steps).run(Sure(), X, y, generator())
        assert not result.fooled.any() and result.cost.backward_images == 6 * steps
        with torch.no_grad():
            losses.append(nn.functional.cross_entropy(Sure()(result.x_adv), y).item())
    assert losses[1] > losses[0]


def test_results_do_not_depend_on_the_batch(attack: Any) -> None:
    model, ids = Mixed().double(), torch.arange(6)
    x = X.double()
    y = predicted(model, x)
    whole = attack(model, x, y, generator(), sample_ids=ids)
    assert torch.equal(attack(model, x, y, generator(), engine=Engine(batch_size=4)), whole)
    for rows in (ids[5:], torch.tensor([4, 0, 2])):
        part = attack(model, x[rows], y[rows], generator(), sample_ids=ids[rows])
        torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 1, 9, 6), (3, 3, 33, 17), (0, 3, 8, 8)], ids=str)
def test_any_size_and_dtype(attack: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = images(*shape).to(dtype)
    model = Flat(x).to(dtype)
    result = attack.run(model, x, predicted(model, x), generator())
    assert result.x_adv.shape == x.shape and result.x_adv.dtype == dtype
    assert bool(((result.x_adv >= 0) & (result.x_adv <= 1)).all())


def test_other_bounds_and_wrong_inputs(attack: Any) -> None:
    class Scaled(Mixed):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x / 256)

    x, y = X.double(), predicted(Mixed().double(), X.double())
    large = type(attack)(steps=4, bounds=None).under(ThreatModel(bounds=(0.0, 256.0)))
    found = large(Scaled().double(), 256 * x, y, generator())
    torch.testing.assert_close(found / 256, attack(Mixed().double(), x, y, generator()))
    with pytest.raises(ArgumentError, match=r"`x`: expected images \(B, C, H, W\)"):
        attack(Flat(X[:, 0, 0]), X[:, 0, 0], y, generator())


def test_a_constant_flow_moves_the_image_by_its_pixels() -> None:
    """Far from the edges the blurred flow is constant: half a pixel is the mean of two."""
    x = images(1, 3, 64, 64)
    flow = torch.zeros(1, 2, 64, 64)
    flow[:, 0] = 1.0
    moved = Elastic(eps=0.5).image(x, flow, {})
    expected = (x[..., 20:44, 20:44] + x[..., 20:44, 21:45]) / 2
    torch.testing.assert_close(moved[..., 20:44, 20:44], expected, rtol=0, atol=1e-4)


def test_jpeg_changes_coefficients_in_quantisation_steps() -> None:
    """Luminance of one block by scipy's transform; at quality 50 the tables are those of the
    standard (ITU T.81, annex K)."""
    luma, chroma = quantisation(50)
    assert luma[:9].tolist() == [16, 11, 10, 16, 24, 40, 51, 61, 12]
    assert chroma[:4].tolist() == [17, 18, 24, 47]
    block = torch.rand(8, 8, generator=generator()).double()
    mine = cosines() @ block @ cosines().T
    torch.testing.assert_close(mine, torch.from_numpy(dctn(block.numpy(), norm="ortho")))
    attack, x = JPEG(eps=0.5, quality=50), torch.full((1, 3, 20, 20), 0.5).double()
    parameters = torch.zeros(1, 4, 6, 64).double()
    parameters[0, 0, 1, 9] = 1.0  # of the first square the block on the right: row 1, column 1
    change = (attack.image(x, parameters, {}) - x)[0]
    assert change[:, :, :8].abs().max() == 0 and change[:, 8:].abs().max() == 0
    found = torch.from_numpy(dctn(255 * change[1, :8, 8:16].numpy(), norm="ortho")).flatten()
    expected = torch.zeros(64).double()
    expected[9] = 0.5 * luma[9]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    parameters = torch.zeros(1, 4, 6, 64).double()
    parameters[0, 3, 5, 0] = 1.0  # red chroma of the last square, which is cut to 4 x 4
    change = (attack.image(x, parameters, {}) - x)[0]
    level = 0.5 * int(chroma[0]) / 8 / 255
    torch.testing.assert_close(change[0, 16:, 16:], torch.full((4, 4), 1.402 * level).double())
    assert change[:, :16].abs().max() == 0 and change[2].abs().max() == 0


def test_diamond_square_by_hand() -> None:
    """The first scale: 1 is added to the middle, 2 and 3 to the sides, all others are 0. Then a
    middle of the second, of which the four corners are all values, weighed by a half."""
    values = torch.zeros(1, 15)
    values[0, :3] = torch.tensor([1.0, 2.0, 3.0])
    first = diamond_square(values[:, :3])[0]
    assert first.tolist() == [[0, 2.5], [3.5, 1]]
    values[0, 3] = 4.0
    assert diamond_square(values)[0][1, 1] == (0 + 2.5 + 3.5 + 1) / 4 + 4 / 2


def test_fog_snow_and_noise_are_of_their_strength() -> None:
    x = 0.2 + 0.5 * images(2, 3, 40, 40)
    fog = Fog(eps=0.25)
    draw = torch.rand(2, 4**6 - 1, generator=generator()) * 2 - 1
    brightest = x.amax((2, 3), keepdim=True)
    mist = fog.image(x, draw, {}) * (brightest + 0.25) / brightest - x
    assert mist.amin((1, 2, 3)).abs().max() < 1e-6
    torch.testing.assert_close(mist.amax((1, 2, 3)), torch.tensor([0.25, 0.25]))
    gabor = Gabor(eps=0.25)
    scene = {"kernels": torch.randn(2, 23, 23), "places": torch.rand(2, 40, 40) < 1 / 14}
    noise = gabor.image(x, torch.randn(2, 40, 40), scene) - x
    torch.testing.assert_close(noise.amin((1, 2, 3)), torch.zeros(2), rtol=0, atol=1e-6)
    torch.testing.assert_close(noise.amax((1, 2, 3)), torch.tensor([0.25, 0.25]))
    assert torch.equal(noise[:, 0], noise[:, 1]) or (noise[:, 0] - noise[:, 1]).abs().max() < 1e-6
    snow = Snow(budget=0.25)
    flakes = (snow.stepped(torch.rand(2, 7, 16, 16), torch.ones(2, 7, 16, 16), 0.5, {}) + 1) / 2
    mean = nn.functional.avg_pool2d(flakes, 8)
    torch.testing.assert_close(mean, torch.full_like(mean, 0.25))
    streak = torch.zeros(1, 7, 13, 13)
    streak[:, 2, 6, 6:9] = 1.0
    single = -torch.ones(1, 7, 4, 4)
    single[0, 2, 1, 1] = 1.0  # flake grid 2 lies at rows 4 i, columns 4 j + 2
    drawn = snow.image(torch.full((1, 3, 16, 16), 0.5), single, {"streaks": streak})
    white = (drawn[0, 0] > drawn[0, 0].min() + 0.1).nonzero().tolist()
    assert white == [[4, 4], [4, 5], [4, 6]]  # torch correlates


def test_at_most_so_many_pixels_change_and_who_stands_still_draws_anew() -> None:
    model, y = Flat(X), predicted(Flat(X), X)
    for eps in (1, 5):
        x_adv = SparsePGD(eps=eps, steps=6).run(model, X, y, generator()).x_adv
        assert ((x_adv != X).any(1).flatten(1).sum(1) <= eps).all()
    attack = SparsePGD(eps=2)
    parameters = torch.zeros(1, 2, 3, 3)
    parameters[0, 0, 0] = torch.tensor([3.0, 2.0, -3.0])
    x, zeros = torch.full((1, 1, 3, 3), 0.25), torch.zeros(1, dtype=torch.int64)
    scene = {"x": x, "scores": torch.full((1, 8, 3, 3), 7.0), "taken": zeros, "waited": zeros}
    grad = torch.zeros_like(parameters)
    grad[0, 1] = 1.0
    for step in range(3):
        assert bool((parameters[0, 0] == 7).all()) == (step == 3)
        parameters = attack.stepped(parameters, grad, 0.5, scene)
    assert bool((parameters[0, 0] == 7).all()) and scene["taken"].item() == 1
    assert bool((parameters[0, 1] == 0.75).all())  # two steps of 0.5 end at the box


def test_a_mask_s_gradient_is_that_of_its_sigmoid() -> None:
    """d image / d score = magnitude sigmoid', and of the magnitude the sigmoid, or the mask."""
    for unprojected in (True, False):
        attack = SparsePGD(eps=1, unprojected=unprojected)
        leaf = torch.tensor([[[[2.0, -1.0]], [[0.5, 0.25]]]]).requires_grad_(True)
        image = attack.image(torch.zeros(1, 1, 1, 2), leaf, {})
        assert image.flatten().tolist() == [0.5, 0.0]
        (grad,) = torch.autograd.grad(image.sum(), leaf)
        soft = torch.tensor([2.0, -1.0]).sigmoid()
        torch.testing.assert_close(grad[0, 0, 0], soft * (1 - soft) * torch.tensor([0.5, 0.25]))
        outer = soft if unprojected else torch.tensor([1.0, 0.0])
        torch.testing.assert_close(grad[0, 1, 0], outer)


def test_steps_are_one_over_the_root_of_their_number() -> None:
    sizes = []

    class Told(Elastic):
        def stepped(self, parameters: Tensor, grad: Tensor, size: float, scene: Any) -> Tensor:
            sizes.append(size)
            return super().stepped(parameters, grad, size, scene)

    Told(steps=16)(Flat(X), X, (predicted(Flat(X), X)), generator())
    assert set(sizes) == {1 / math.sqrt(16)}

"""Inputs on which other attack libraries fail or answer wrongly, and this one does not.

The rows of `test_known_defects.TABLE` that speak of dtypes, shapes, classes, radii and bounds; each
test begins with its row.
"""

from typing import Any

import pytest
import torch
from tiny_attacks import EPS, generator, has, inside_one, predicted, short
from tiny_models import Mixed, images
from torch import Tensor, nn

from roli_fast.attacks import ATTACKS, Attack
from roli_fast.errors import ArgumentError
from roli_fast.norms import NORMS

X = images(6, 3, 6, 6)
Y = predicted(Mixed(), X)


@pytest.fixture(params=NORMS.names())
def norm(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=ATTACKS.names())
def kind(request: pytest.FixtureRequest) -> type[Attack]:
    return ATTACKS[request.param]


def inside(x_adv: Tensor, x: Tensor, attack: Any) -> bool:
    """Whether all samples lie in one of the balls, in exact arithmetic, and in the box."""
    close = bool(inside_one(x_adv, x, attack).all())
    return close and 0 <= x_adv.min().item() and x_adv.max().item() <= 1


class Autocast(nn.Module):
    """A model that computes in bf16 by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Mixed()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(x)


def test_a_model_under_autocast_with_fp32_images(kind: type[Attack], norm: str) -> None:
    """autocast(bf16) model: AA Square raises (index_put dtype); torchattacks APGD raises."""
    model, attack = Autocast(), short(kind, norm)
    y = predicted(model, X)
    assert Autocast()(X).dtype == torch.bfloat16
    x_adv = attack(model, X, y, generator())
    assert x_adv.dtype == torch.float32 and inside(x_adv, X, attack)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attack(Mixed(), X, y, generator()), x_adv)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_model_and_images_of_sixteen_bits(
    kind: type[Attack], norm: str, dtype: torch.dtype
) -> None:
    """bf16 model and inputs: AA and APGD raise; torchattacks PGD leaves the ball by 1.8e-3."""
    model, x, attack = Mixed().to(dtype), X.to(dtype), short(kind, norm)
    x_adv = attack(model, x, predicted(model, x), generator())
    assert x_adv.dtype == dtype and inside(x_adv, x, attack)
    if norm == "linf" and attack.reach == 1:
        outside = (x_adv.double() - x.double()).abs() > torch.tensor(EPS[norm]).double()
        assert int(outside.sum()) == 0


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_rows_of_twenty_numbers_and_few_classes(
    kind: type[Attack], norm: str, classes: int
) -> None:
    """(N,20) inputs: PGDL2, APGD, Square raise; AA standard raises IndexError with 5 classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(20, classes)
    x = images(40, 20)
    y, attack = predicted(model, x), short(kind, norm)
    x_adv = attack(model, x, y, generator())
    assert x_adv.shape == x.shape and inside(x_adv, x, attack)
    assert bool((predicted(model, x_adv) != y).any())


@pytest.mark.parametrize("size", [(24, 40), (40, 24), (1, 9)], ids=str)
def test_images_that_are_not_square(kind: type[Attack], norm: str, size: tuple[int, int]) -> None:
    """non-square images: Square L2 and L1 raise at 24x40; at 40x24 torchattacks L2 raises."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * size[0] * size[1], 4))
    x = images(4, 3, *size)
    y, attack = predicted(model, x), short(kind, norm)
    result = attack.run(model, x, y, generator())
    assert result.x_adv.shape == x.shape and inside(result.x_adv, x, attack)
    assert not torch.equal(result.x_adv, x) or (
        result.fooled is not None and not bool(result.fooled.any())
    )


def test_a_radius_a_sample_equals_calls_with_one_radius(kind: type[Attack], norm: str) -> None:
    """per-sample eps: torchattacks PGD raises with random_start; foolbox runs K attacks."""
    x, model = X.double(), Mixed().double()
    if "eps" not in kind.options:
        with pytest.raises(TypeError, match="`eps`"):  # refused, never another radius in silence
            short(kind, norm)(model, x, predicted(model, x), generator(), eps=0.1)
        return
    y, attack, ids = predicted(model, x), short(kind, norm), torch.arange(6)
    radii = EPS[norm] * torch.tensor([0.0, 0.25, 0.5, 1.0, 2.0, 4.0]).double()
    together = attack(model, x, y, generator(), sample_ids=ids, eps=radii)
    assert torch.equal(together[0], x[0])
    for i, eps in enumerate(radii[1:].tolist(), start=1):
        one = short(kind, norm, eps)
        alone = one(model, x[i : i + 1], y[i : i + 1], generator(), sample_ids=ids[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "x", [X - 0.5, X * 1.5, (X - 0.45) / 0.225, X + 3e-5 + 1 - X.max()], ids=str
)
def test_images_outside_the_box_are_refused(kind: type[Attack], norm: str, x: Tensor) -> None:
    """inputs outside [0,1]: torchattacks and AA return |delta| up to 4.02 at eps 0.03, silently."""
    with pytest.raises(ArgumentError, match="`x`: expected images within bounds"):
        short(kind, norm)(Mixed(), x, Y, generator())


class Layout(torch.autograd.Function):
    """The identity whose gradient is channels_last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].contiguous(memory_format=torch.channels_last)


class ChannelsLast(nn.Module):
    """A model whose input gradient is channels_last, as cuDNN's and oneDNN's convolutions give."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            x = Layout.apply(x)  # pyright: ignore
        return self.inner(x)


def takes(kind: type[Attack], loss: str) -> bool:
    """Whether the attack ascends this loss."""
    try:
        return has(kind, "loss") and bool(kind(loss=loss))  # pyright: ignore
    except ArgumentError:
        return False


DLR = [(name, {"loss": "dlr"}) for name in ATTACKS if takes(ATTACKS[name], "dlr")]


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in ATTACKS), *DLR], ids=str)
def test_gradients_that_are_channels_last(name: str, options: dict[str, Any], norm: str) -> None:
    """AA's DLR attacks, input gradient channels_last: crash (`view` in the zero-gradient check)."""
    attack = short(ATTACKS[name], norm, **options)
    x_adv = attack(ChannelsLast(Mixed()), X, Y, generator())
    assert torch.allclose(x_adv, attack(Mixed(), X, Y, generator()), atol=1e-6)

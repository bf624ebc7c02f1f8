"""The Square attack: what it returns, what it costs, and what it leaves alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from oracle import Net, batch, margins
from tiny_models import Counting, FixedLogits, Mixed, images, untouched
from torch import Tensor, nn

from roli_fast.attacks.square import Square
from roli_fast.compat.original_draws import OriginalSquare
from roli_fast.engine import Cost
from roli_fast.errors import ArgumentError, ArgumentTypeError
from roli_fast.norms import NORMS

KINDS = (Square, OriginalSquare)
EPS = {"linf": 0.25, "l2": 5.0, "l1": 60.0}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def within(norm: str, x_adv: Tensor, x: Tensor, eps: float) -> bool:
    radius = torch.tensor(eps, dtype=x.dtype).double()  # eps means its value in this dtype
    inside = (NORMS[norm].distance(x_adv, x) <= radius).all()
    return bool(inside) and 0 <= x_adv.min().item() and x_adv.max().item() <= 1


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("loss", ["margin", "ce"])
def test_flags_queries_and_images_are_true(norm: str, loss: str) -> None:
    model = Net()
    x, y = batch(16, model)
    result = Square(norm=norm, eps=EPS[norm], n_queries=60, loss=loss).run(model, x, y, generator())
    assert torch.equal(result.fooled, margins(model, result.x_adv, y) > 0)
    assert within(norm, result.x_adv, x, EPS[norm])
    wrong = margins(model, x, y) > 0
    assert wrong.sum() < result.fooled.sum() <= 16  # pyright: ignore
    assert torch.equal(result.x_adv[wrong], x[wrong])
    assert result.queries is not None and result.queries[wrong].eq(1).all()
    assert result.queries[~result.fooled].eq(62).all()  # clean, start, 60 proposals
    assert result.queries.sum() == result.cost.forward_images
    assert result.queries.max() == result.cost.forwards


@pytest.mark.parametrize("norm", EPS)
def test_what_is_not_fooled_is_returned_where_the_loss_was_highest(norm: str) -> None:
    """More queries from the same numbers can only raise the loss."""
    model = Net()
    x, y = batch(14, model)
    heights = []
    for count in (1, 8, 30):
        attack = Square(norm=norm, eps=EPS[norm] / 8, n_queries=count, rescale_schedule=False)
        result = attack.run(model, x, y, generator())
        assert not result.fooled[1:7].any()  # pyright: ignore
        heights.append(margins(model, result.x_adv, y)[1:7])
    assert (heights[0] <= heights[1]).all() and (heights[1] <= heights[2]).all()
    assert (heights[0] < heights[2]).all()


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("loss", ["margin", "ce"])
def test_towards_a_target(norm: str, loss: str) -> None:
    """An image is fooled when it is classified as its target; what was so is not searched."""
    model = Net()
    x, y = batch(16, model)
    with torch.no_grad():
        likeliest, target = model(x).topk(2).indices.T.contiguous()
        target[3] = likeliest[3]
    y = torch.where(y == target, (target + 1) % 10, y)
    attack = Square(norm=norm, eps=EPS[norm], n_queries=60, loss=loss)
    result = attack.run(model, x, y, generator(), target=target)
    with torch.no_grad():
        reached = model(result.x_adv).argmax(1) == target
    assert torch.equal(result.fooled, reached) and within(norm, result.x_adv, x, EPS[norm])
    assert torch.equal(result.x_adv[3], x[3]) and 2 <= reached.sum() <= 16
    with pytest.raises(ArgumentError, match="`target`: expected other classes than `y`"):
        attack.run(model, x, y, generator(), target=y)


class Unmoved(nn.Module):
    """Class 1 of 3 whatever comes; it fails where a gradient is asked for."""

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled() and not x.requires_grad
        return torch.tensor([0.0, 1.0, 0.5]).expand(len(x), 3)


@pytest.mark.parametrize("norm", EPS)
def test_the_cost_where_nothing_is_fooled(norm: str) -> None:
    model = Counting(Unmoved())
    attack = Square(norm=norm, eps=0.5, n_queries=9, restarts=2)
    result = attack.run(model, images(3, 2, 6, 6), torch.ones(3).long(), generator())
    assert result.cost == Cost(1 + 2 * (1 + 9), 0) == Cost(model.forwards, model.backwards)
    assert result.cost.forward_images == 3 * result.cost.forwards
    assert result.queries is not None and result.queries.tolist() == [21, 21, 21]


def test_nothing_is_asked_once_all_are_fooled() -> None:
    model, x = Counting(Unmoved()), images(3, 2, 6, 6)
    result = Square(n_queries=50).run(model, x, torch.zeros(3).long(), generator())
    assert result.cost == Cost(1, 0) and torch.equal(result.x_adv, x)
    bright = FixedLogits(torch.stack([torch.ones(72), torch.full((72,), -1.0)]))
    bright.bias = nn.Parameter(torch.tensor([-60.0, 60.0]))
    y = bright(x).argmax(1)
    result = Square(eps=0.9, n_queries=900).run(Counting(bright), x, y, generator())
    assert result.fooled is not None and result.fooled.all() and result.cost.forwards < 902


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("restarts", [1, 2])
def test_batch_and_order_do_not_matter(norm: str, restarts: int) -> None:
    model = Net()
    x, y = batch(9, model)
    ids = torch.arange(500, 509)
    attack = Square(norm=norm, eps=EPS[norm], n_queries=40, restarts=restarts)

    def run(rows: Tensor) -> Any:
        return attack.run(model, x[rows], y[rows], generator(3), sample_ids=ids[rows])

    whole = run(torch.arange(9))
    assert 2 < whole.fooled.sum() < 9
    for rows in (torch.randperm(9, generator=generator(1)), torch.arange(4), torch.tensor([5])):
        part = run(rows)
        assert torch.equal(part.fooled, whole.fooled[rows])
        assert torch.equal(part.queries, whole.queries[rows])
        assert torch.allclose(part.x_adv, whole.x_adv[rows], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("norm", "kind"), [("linf", Square), ("l2", Square), ("l1", Square), ("linf", OriginalSquare)]
)
def test_leaving_the_batch_changes_nothing_but_the_cost(norm: str, kind: Any) -> None:
    model = Net()
    x, y = batch(9, model)
    attack = kind(norm=norm, eps=EPS[norm] * 1.6, n_queries=40)
    leaving = attack.run(model, x, y, generator())
    staying = replace(attack, compact=False).run(model, x, y, generator())
    assert 2 < leaving.fooled.sum() < 9  # pyright: ignore
    assert torch.equal(leaving.fooled, staying.fooled)  # pyright: ignore
    assert torch.equal(leaving.queries, staying.queries)  # pyright: ignore
    assert torch.allclose(leaving.x_adv, staying.x_adv, rtol=0, atol=1e-9)
    assert staying.cost.forwards == 42 and staying.cost.forward_images == 9 + 7 * 41
    assert leaving.cost.forward_images < staying.cost.forward_images


@pytest.mark.parametrize("restarts", [1, 3])
def test_one_number_of_the_generator_is_drawn(restarts: int) -> None:
    source, other = generator(4), generator(4)
    torch.randint(2**62, (1,), generator=other)
    Square(n_queries=3, restarts=restarts)(
        Mixed(), images(2, 3, 6, 6), torch.tensor([0, 1]), source
    )
    assert torch.equal(source.get_state(), other.get_state())


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize(
    "shape",
    [(24, 40), (40, 24), (5, 3), (2, 9), (1, 1), (1, 8), (8, 1), (4, 4), (17,), (3, 11)],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_any_shape(norm: str, shape: tuple[int, ...], kind: Any) -> None:
    full = (3, 2, *shape) if len(shape) == 2 and shape != (3, 11) else (3, *shape)
    x, eps = images(*full), {"linf": 0.1, "l2": 0.3, "l1": 0.5}[norm]
    weight = torch.randn(3, x[0].numel(), generator=generator(1))
    model = FixedLogits(weight)
    y = model(x).argmax(1)
    attack = kind(norm=norm, eps=eps, n_queries=40)
    result = attack.run(model, x, y, generator())
    assert within(norm, result.x_adv, x, eps)
    assert (margins(model, result.x_adv, y) > margins(model, x, y)).all()


class Rising(nn.Module):
    """A loss that rises with every forward, so that every proposal stays."""

    def __init__(self) -> None:
        super().__init__()
        self.height = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.height += 1e-3
        return torch.tensor([self.height, 1.0, -9.0]).expand(len(x), 3)


@pytest.mark.parametrize(("kind", "reached"), [(Square, 4), (OriginalSquare, 3)])
def test_every_pixel_can_change(kind: Any, reached: int) -> None:
    """The original's windows never reach the last row and column; ours do."""
    x, seen = torch.full((60, 1, 4, 4), 0.5), torch.zeros(4, 4, dtype=torch.bool)
    attack = kind(eps=0.25, n_queries=1, p_init=0.05, rescale_schedule=False)
    for seed in range(40):
        own = replace(attack, seed=seed) if kind is OriginalSquare else attack
        moved = own(Rising(), x, torch.ones(60).long(), generator(seed))
        stripes = moved.median(dim=2, keepdim=True).values  # one of four rows may differ
        seen |= (moved != stripes).any(0)[0]
    assert seen[:reached, :reached].all() and seen.sum() == reached**2


def test_a_radius_for_each_sample() -> None:
    model = Net()
    x, y = batch(7, model)
    eps = torch.linspace(0, 0.3, 7).double()
    for norm in EPS:
        result = Square(norm=norm, n_queries=20).run(model, x, y, generator(), eps=eps)
        assert (NORMS[norm].distance(result.x_adv, x) <= eps).all()


def test_logits_that_break_down_count_as_fooled_and_nothing_is_raised() -> None:
    class Breaking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = torch.stack([x.flatten(1).sum(1) + 9, x.flatten(1).sum(1)], 1)
            return torch.where(x.flatten(1)[:, :1] == 0.5, logits, torch.nan)

    x = torch.full((2, 1, 4, 4), 0.5)
    result = Square(n_queries=5).run(Breaking(), x, torch.tensor([0, 0]), generator())
    assert result.fooled is not None and result.fooled.all()


class Failing(Mixed):
    """Raises at forward number `at`."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return super().forward(x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [1, 2, 5])
def test_after_an_exception_everything_is_as_it_was(at: int, kind: Any) -> None:
    model, x = Failing(at), images(6, 3, 6, 6)
    with torch.no_grad():
        y = Mixed().eval()(x).argmax(1)
    with untouched(model), pytest.raises(KeyboardInterrupt):
        kind(n_queries=9, eps=1e-3)(model, x, y, generator())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"n_queries": 0}, "n_queries"),
        ({"restarts": -1}, "restarts"),
        ({"p_init": 0}, "p_init"),
        ({"p_init": "1"}, "p_init"),
        ({"loss": "dlr"}, "loss"),
    ],
    ids=str,
)
def test_wrong_fields(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ArgumentError, match=f"`{name}`: expected .*, got "):
        Square(**options)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"sample_ids": torch.arange(3)}, "sample_ids"),
        ({"sample_ids": [0, 1]}, "sample_ids"),
        ({"generator": 3}, "generator"),
    ],
    ids=str,
)
def test_wrong_sources_of_draws(options: dict[str, Any], name: str) -> None:
    with pytest.raises((ArgumentError, ArgumentTypeError), match=f"`{name}`: expected"):
        Square()(Mixed(), images(2, 3, 6, 6), torch.tensor([0, 1]), **options)


def test_wrong_inputs() -> None:
    with pytest.raises(ArgumentError, match=r"`x`: expected a batch \(B, C, H, W\)"):
        Square()(Mixed(), images(2, 3, 4, 4, 4), torch.tensor([0, 1]))
    with pytest.raises(ArgumentError, match="`model`.*NaN for 2 of 2"):
        model = FixedLogits(torch.full((3, 4), torch.nan))
        Square()(model, images(2, 4), torch.tensor([0, 1]))

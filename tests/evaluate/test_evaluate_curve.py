"""Robustness curves of linear models, whose every distance is known, and of small networks."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_models import FixedLogits, Mixed, images, untouched
from torch import Tensor

from roli_fast.attacks import FAB, FGSM, PGD, Union
from roli_fast.attacks.base import AttackInputs, AttackResult, BallAttack
from roli_fast.data import Batch
from roli_fast.engine import Cost, Engine
from roli_fast.errors import ArgumentError, ArgumentTypeError
from roli_fast.evaluate import Curve, evaluate, plot_curves, robustness_curve
from roli_fast.evaluate.curve import draw_curves

WEIGHT = torch.tensor([[0.0, 0.0, 0.0], [4.0, 1.0, -3.0]])
"""Logit 1 minus logit 0 is w @ x + b: |w|_1 = 8, |w|_2 = sqrt(26), |w|_inf = 4."""

MARGINS = torch.tensor([0.4, 0.8, 1.2, 1.6, -0.4])
"""Of class 0 over class 1, for x = 1/2 and its bias; the last is wrong when clean."""


class Linear(FixedLogits):
    """Class 0 leads by the margin that the first pixel's offset from 1/2 gives: 4 times it."""

    def __init__(self) -> None:
        super().__init__(WEIGHT, torch.tensor([0.0, -1.0]))


def data() -> tuple[Tensor, Tensor]:
    """Images at the margins, in the middle of the box; w @ 1/2 is 1, which the bias takes off."""
    x = torch.full((5, 3), 0.5)
    x -= MARGINS[:, None] * WEIGHT[1] / 26
    return x, torch.zeros(5, dtype=torch.int64)


def batches(x: Tensor, y: Tensor, *sizes: int) -> Iterator[Batch]:
    ids = torch.arange(len(y))
    yield from map(Batch, x.split(sizes), y.split(sizes), ids.split(sizes))


DUALS = {"linf": 8.0, "l2": 26**0.5, "l1": 4.0}
SHARES = (0.5, 1.5, 2.5, 3.5, 4.5)
"""Radii in units of the first distance: one more image falls at each."""


@pytest.mark.parametrize("norm", DUALS)
@pytest.mark.parametrize("kind", [PGD, FAB])
def test_accuracy_by_hand(kind: type[BallAttack], norm: str) -> None:
    """A linear model falls at margin / dual norm; the margins are 0.4 times 1, 2, 3, 4."""
    radii = [0.4 * share / DUALS[norm] for share in SHARES]
    attack = kind(norm=norm, steps=20)  # pyright: ignore
    x, y = data()
    curve = robustness_curve(Linear(), batches(x, y, 3, 2), attack, radii)
    assert curve.radii == (0.0, *radii) and curve.norm == norm
    assert [int(flags.sum()) for flags in curve.right] == [4, 4, 3, 2, 1, 0]
    assert curve.accuracy == pytest.approx((0.8, 0.8, 0.6, 0.4, 0.2, 0.0))
    for number, flags in enumerate(curve.right[1:]):
        assert flags.tolist() == [index >= number for index in range(4)] + [False]


@dataclass(frozen=True)
class Falls(BallAttack):
    """Fools sample k once eps exceeds k / 10, unless it is listed as lucky; notes what it sees."""

    norm: str | None = "linf"
    eps: float | None = None
    bounds: tuple[float, float] | None = (0.0, 1.0)
    lucky: float = -1.0
    seen: list[tuple[list[int], float]] = field(default_factory=list, compare=False)
    models: list[Any] = field(default_factory=list, compare=False)

    @property
    def label(self) -> str:
        return "falls"

    def search(self, inputs: AttackInputs) -> AttackResult:
        self.models.append(inputs.model)
        x, eps, ids = inputs.x, self.eps, inputs.ids
        assert eps is not None
        self.seen.append((ids.tolist(), eps))
        falls = ids / 10 + 1e-6 < (eps if eps != self.lucky else 0)
        return AttackResult(torch.where(falls[:, None], 1.0, x), Cost(3, 2))


class AboveHalf(FixedLogits):
    def __init__(self) -> None:
        super().__init__(torch.tensor([[0.0], [2.0]]), torch.tensor([1.0, 0.0]))


def falling(attack: Falls, **options: Any) -> Curve:
    x, y = torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64)
    model = options.pop("model", AboveHalf())
    return robustness_curve(model, batches(x, y, 4), attack, (0.05, 0.15, 0.25), **options)


def test_what_is_fooled_is_not_attacked_again() -> None:
    attack = Falls()
    curve = falling(attack)
    assert attack.seen == [
        ([0, 1, 2, 3], 0.05),
        ([1, 2, 3], 0.15),
        ([2, 3], 0.25),
    ]
    assert [flags.tolist() for flags in curve.right] == [
        [True] * 4, [False, True, True, True], [False, False, True, True], [False] * 3 + [True],
    ]  # fmt: skip
    assert curve.cost == Cost(1 + 3 * 4, 3 * 2)  # clean; three attacks, one look at each


def test_a_search_that_fails_at_a_larger_radius_changes_nothing() -> None:
    """What a smaller ball holds, a larger one holds too: accuracy never rises."""
    curve = falling(Falls(lucky=0.15))
    assert [flags.tolist() for flags in curve.right[1:]] == [
        [False, True, True, True], [False, True, True, True], [False] * 3 + [True],
    ]  # fmt: skip


def test_the_search_model_searches_and_the_plain_one_decides() -> None:
    """The attack gets the search model as it is; flags are those of the model inside."""
    attack, model = Falls(), Engine(dtype=torch.bfloat16).bind(AboveHalf())
    assert torch.equal(falling(attack, model=model).right, falling(Falls()).right)
    assert all(given is model for given in attack.models)


def small_network() -> tuple[Mixed, Tensor, Tensor]:
    x = images(30, 3, 6, 6)
    with torch.no_grad():
        y = Mixed().eval()(x).argmax(1)
    y[::7] = (y[::7] + 1) % 3
    return Mixed(), x, y


RADII = (0.02, 0.05, 0.1, 0.2, 0.4)


def on_network(*sizes: int, attack: BallAttack | None = None, **options: Any) -> Curve:
    model, x, y = small_network()
    with untouched(model):
        return robustness_curve(
            options.pop("model", model),
            batches(x, y, *(sizes or (30,))),
            attack or PGD(steps=3),
            RADII,
            **options,
        )


def test_each_point_is_what_evaluate_finds() -> None:
    """Draws and all, whatever the batches: right here is right for `evaluate` at this radius and
    all smaller."""
    done: list[int] = []
    curve = on_network(13, 0, 17, seed=3, after_batch=done.append)
    assert done == [13, 0, 17]
    model, x, y = small_network()
    still = torch.ones(30, dtype=torch.bool)
    for radius, flags in zip(RADII, curve.right[1:], strict=True):
        attack = PGD(steps=3, eps=radius, step_size=None)
        found = evaluate(model, batches(x, y, 30), [attack], seed=3)
        still &= found.robust["pgd-3"]
        assert torch.equal(flags, still)
        assert torch.equal(curve.right[0], found.clean)
    counts = curve.right.sum(1).tolist()
    assert len(set(counts)) >= 4 and counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(
    ("radii", "attack", "words"),
    [
        ((), FGSM(), "`radii`: expected one or more numbers, ascending"),
        ((0.1, 8), FGSM(norm="l2"), "radius in l2 of at most 1, .*Did you mean 8/255"),
        ((0.1,), FGSM(norm=None), r"`norm`: expected a value.*under"),
        ((0.1,), PGD(step_size=3 / 255), r"`step_size`: expected None.*quarter of each"),
        ((0.1,), Union([FGSM()]), "`attack`: expected an attack in one ball"),
    ],
)
def test_a_call_that_is_refused(radii: Any, attack: Any, words: str) -> None:
    """Images are of one pixel; PGD's usual 2/255 at 8/255 is a quarter, 3/255 no rule."""
    x, y = torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64)
    with pytest.raises((ArgumentError, ArgumentTypeError), match=words):
        robustness_curve(AboveHalf(), batches(x, y, 4), attack, radii)
    with pytest.raises(ArgumentError, match="`batches`: expected at least one image"):
        robustness_curve(AboveHalf(), [], FGSM(), (0.1,))


def made_up(name: str, norm: str = "linf", attack: str = "pgd-10") -> Curve:
    """10 images, of which 9, 7, 4 and 0 stay right."""
    right = torch.arange(10) < torch.tensor([9, 7, 4, 0])[:, None]
    radii = (0.0, 2 / 255, 4 / 255, 8 / 255) if norm == "linf" else (0.0, 0.25, 0.5, 1.0)
    return Curve(name, attack, norm, radii, right, Cost(40, 30, 400, 300))


@pytest.mark.parametrize(
    ("eps", "expected"),
    [
        (None, (2 * 0.8 + 2 * 0.55 + 4 * 0.2) / 8),  # 0.9 to 0.7, 0.7 to 0.4, 0.4 to 0
        (8 / 255, 3.5 / 8),
        (4 / 255, (2 * 0.8 + 2 * 0.55) / 4),
        (3 / 255, (2 * 0.8 + 1 * 0.625) / 3),  # half way from 0.7 to 0.4
        (1 / 255, 0.85),
    ],
)
def test_expected_robustness_by_hand(eps: float | None, expected: float) -> None:
    curve = made_up("vit")
    assert curve.expected_robustness(eps) == pytest.approx(expected)
    told = curve.as_json(eps)["expected_robustness"]
    assert told == {"eps": eps or 8 / 255, "accuracy": pytest.approx(expected)}
    with pytest.raises(ArgumentError, match="`eps`: expected a radius in"):
        curve.expected_robustness(9 / 255)


def test_json_by_hand() -> None:
    found = json.loads(json.dumps(made_up("vit").as_json()))
    assert found["images"] == 10
    images = {"forward_images": 400, "backward_images": 300}
    assert found["cost"] == {"forwards": 40, "backwards": 30, **images}
    assert [found[key] for key in ("name", "attack", "norm")] == ["vit", "pgd-10", "linf"]
    first = found["points"][0]
    assert first["right"] == 9 and first["accuracy"] == 0.9 and first["eps"] == 0
    assert first["low"] == pytest.approx(0.596, abs=5e-4)  # 9 of 10, published
    assert first["high"] == pytest.approx(0.982, abs=5e-4)


def test_a_png_of_grey_levels_and_percent_with_the_interval_as_a_band(tmp_path: Path) -> None:
    curves = [made_up("vit").as_json(), made_up("pgd-10").as_json()]
    axes = draw_curves(curves).axes[0]
    assert axes.lines[0].get_xydata().ravel() == pytest.approx([0, 90, 2, 70, 4, 40, 8, 0])
    assert axes.get_xlabel() == "linf radius, in 1/255" and axes.get_ylim() == (0, 100)
    told = [text.get_text() for text in axes.get_legend().get_texts()]
    assert told == ["vit, pgd-10, expected 43.8%", "pgd-10, expected 43.8%"]
    assert "10 images" in axes.get_title()
    corners = axes.collections[0].get_paths()[0].vertices
    for point in curves[0]["points"]:
        column = corners[abs(corners[:, 0] - point["eps"] * 255) < 1e-9, 1]
        assert column.min() == pytest.approx(100 * point["low"], abs=1e-6)
        assert column.max() == pytest.approx(100 * point["high"], abs=1e-6)
    plot_curves(curves, tmp_path / "new" / "curve.png")
    with Image.open(tmp_path / "new" / "curve.png") as image:
        assert image.format == "PNG" and image.width > 500 and image.height > 400
    with pytest.raises(ArgumentError, match="`curves`: expected curves of one norm.*linf, l2"):
        plot_curves([*curves, made_up("a", "l2").as_json()], tmp_path / "none.png")

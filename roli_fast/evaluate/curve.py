"""Accuracy against the radius of the attack: a robustness curve, several radii in one call."""

import io
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from roli_fast.attacks import PGD
from roli_fast.attacks.base import BallAttack, check_given
from roli_fast.attacks.ensemble import total
from roli_fast.data import Batch
from roli_fast.engine import Cost, bound
from roli_fast.engine.input_gradient import Model
from roli_fast.errors import ArgumentError, ArgumentTypeError, describe
from roli_fast.evaluate.dataset import AttackRow, Chunk, attack_batches
from roli_fast.evaluate.shares import wilson_interval
from roli_fast.files import write_bytes
from roli_fast.norms import NORMS
from roli_fast.threat import check_positive, check_radius

if TYPE_CHECKING:  # loading matplotlib takes longer than the rest of the package
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Curve:
    """How many images stay right as the radius grows.

    Args:
        name: what the curve is called in a plot, the model's name say.
        attack: the attack's label.
        norm: "linf", "l2" or "l1".
        radii: R + 1 radii, ascending; the first is 0, the clean images.
        right: bool (R + 1, N) on the CPU, in the order of the data: classified right at a radius
            and at every smaller one.
        cost: the passes of all images and radii.
    """

    name: str
    attack: str
    norm: str
    radii: tuple[float, ...]
    right: Tensor = field(repr=False)
    cost: Cost

    @property
    def accuracy(self) -> tuple[float, ...]:
        """Share of right images at each radius, in [0, 1]; it never rises."""
        return tuple(self.right.double().mean(1).tolist())

    def expected_robustness(self, eps: float | None = None) -> float:
        """The mean accuracy over all radii from 0, the clean images, to `eps`: the area under the
        curve by the trapezoid rule, divided by eps, in [0, 1].

        Args:
            eps: up to where, at most the largest radius, which None takes; between two radii the
                curve is a line.
        """
        eps = self.radii[-1] if eps is None else eps
        if not 0 < eps <= self.radii[-1]:
            raise ArgumentError(describe("eps", f"a radius in (0, {self.radii[-1]:g}]", eps))
        radii = [*(radius for radius in self.radii if radius < eps), eps]
        heights = np.interp(radii, self.radii, self.accuracy)
        return torch.trapezoid(torch.tensor(heights), torch.tensor(radii).double()).item() / eps

    def as_json(self, eps: float | None = None) -> dict[str, Any]:
        """The curve in JSON's types, without the flags: of each point the accuracy and its 95 %
        Wilson interval; the expected robustness up to `eps`, or to the largest radius where that is
        smaller or eps is None."""
        count = self.right.shape[1]
        points = []
        for radius, right in zip(self.radii, self.right.sum(1).tolist(), strict=True):
            low, high = wilson_interval(right, count)
            point = {"eps": radius, "accuracy": right / count, "right": right}
            points.append(point | {"low": low, "high": high})
        eps = min(eps or math.inf, self.radii[-1])
        return {
            "name": self.name,
            "attack": self.attack,
            "norm": self.norm,
            "images": count,
            "expected_robustness": {"eps": eps, "accuracy": self.expected_robustness(eps)},
            "points": points,
            "cost": asdict(self.cost),
        }


def robustness_curve(
    model: Model,
    batches: Iterable[Batch],
    attack: BallAttack,
    radii: Sequence[float],
    *,
    seed: int = 0,
    name: str = "",
    after_batch: Callable[[int], None] | None = None,
) -> Curve:
    """Attack images at several radii; a sample's draws are those of `evaluate` at any one of them.

    The ball of a smaller radius lies in that of a larger one, so an image that is fooled once is
    fooled at every larger radius: it is attacked at one radius after another, the smallest first,
    until it is fooled. Images that resist to the end cost an attack at every radius.

    Args:
        model: images (B, ...) in the attack's bounds -> logits (B, C); `Engine.bind` says how the
            attack passes images. What it finds counts if it fools the plain model, which searches
            what was lost by that once more (`recheck.search`).
        batches: (x, y, ids) on the model's device.
        attack: searches in balls of one norm; its own eps does not matter. PGD's steps are a
            quarter of each radius; another fixed `step_size` is refused, as it fits one radius.
        radii: above 0 and ascending, in the units of the images; 0, the clean images, is added.
        seed: seeds the draws.
        name: of the curve; the attack's label if empty.
        after_batch: called with the number of images done; a progress bar, or a stop.

    Raises:
        ArgumentError: radii that do not ascend, a fixed step size, no images, labels that the model
            cannot give.
        ArgumentTypeError: an attack that is not in one ball.
    """
    rows = curve_rows(attack, radii, seed)
    done = attack_batches(bound(model), batches, rows, after_batch)
    return joined_curve(done, rows, name or attack.label)


def curve_rows(attack: BallAttack, radii: Sequence[float], seed: int) -> list[AttackRow]:
    """A row for each radius, on what the smaller ones left right.

    Raises:
        ArgumentTypeError: an attack that is not in one ball.
        ArgumentError: a fixed step size, or radii that do not ascend, above 0, within what the
            bounds allow.
    """
    if not isinstance(attack, BallAttack):
        expected = "an attack in one ball, with norm, eps and bounds"
        raise ArgumentTypeError(describe("attack", expected, type(attack).__name__))
    check_given(norm=attack.norm, bounds=attack.bounds)
    assert attack.norm is not None and attack.bounds is not None
    for radius in radii:
        check_positive("radii", radius)
        check_radius(attack.norm, radius, attack.bounds, name="radii")
    if not radii or any(a >= b for a, b in itertools.pairwise(radii)):
        raise ArgumentError(describe("radii", "one or more numbers, ascending", tuple(radii)))
    if isinstance(attack, PGD) and attack.step_size is not None:
        if attack.eps is None or not math.isclose(attack.step_size, attack.eps / 4):
            fix = "A fixed step fits one radius; None is a quarter of each."
            raise ArgumentError(describe("step_size", "None", attack.step_size, fix))
        attack = replace(attack, step_size=None)
    group, draws = f"curve {attack.label}", ("evaluate", seed, attack.label)
    return [
        AttackRow(replace(attack, eps=radius), f"{radius:.9g}", group, (group,), draws)
        for radius in radii
    ]


def joined_curve(chunks: Sequence[Chunk], rows: Sequence[AttackRow], name: str) -> Curve:
    """The curve that these rows, of one attack, are of some chunks."""
    group = rows[0].group
    attacks: list[Any] = [row.attack for row in rows]
    found = [[~row.fooled for row in chunk.group(group)] for chunk in chunks]
    flags = [
        torch.stack([chunk.clean, *own]).cumprod(0).bool()
        for chunk, own in zip(chunks, found, strict=True)
    ]
    costs = [chunk.cost + total(r.cost for r in chunk.group(group)) for chunk in chunks]
    radii = (0.0, *(attack.eps for attack in attacks))
    first = attacks[0]
    return Curve(name, first.label, first.norm, radii, torch.cat(flags, 1), total(costs))


def plot_curves(curves: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write accuracy in % against the radius as a PNG, each curve with its interval as a band;
    `path` is replaced in one step.

    Args:
        curves: what `Curve.as_json` returns, or the same read from a file; of one norm, as radii of
            several cannot be compared.
        path: of the PNG.
    """
    png = io.BytesIO()
    draw_curves(curves).savefig(png, format="png")
    write_bytes(path, png.getvalue())


def draw_curves(curves: Sequence[Mapping[str, Any]]) -> "Figure":
    """The figure of `plot_curves`. It is made without pyplot: no window system is asked for, and no
    figure of the caller changes."""
    from matplotlib.figure import Figure

    norms = list(dict.fromkeys(curve["norm"] for curve in curves))
    if len(norms) != 1:
        raise ArgumentError(describe("curves", "curves of one norm", ", ".join(norms) or "none"))
    figure, unit = Figure(figsize=(5.6, 4.2), dpi=150, layout="constrained"), NORMS[norms[0]].unit
    axes = figure.subplots()
    for curve in curves:
        points, told = curve["points"], (curve["name"], curve["attack"])
        radii = [point["eps"] * unit for point in points]
        low, middle, high = (
            [100 * point[key] for point in points] for key in ("low", "accuracy", "high")
        )
        expected = f"expected {curve['expected_robustness']['accuracy']:.1%}"
        label = ", ".join([*dict.fromkeys(told), expected])
        axes.plot(radii, middle, marker="o", markersize=3.5, clip_on=False, label=label, zorder=3)
        axes.fill_between(radii, low, high, alpha=0.18, linewidth=0)
    axes.set_xlabel(f"{norms[0]} radius" + (f", in 1/{unit:g}" if unit != 1 else ""))
    axes.set(ylabel="accuracy in %", xlim=(0, None), ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right", fontsize="small", handlelength=3)
    axes.set_title(f"{curves[0]['images']} images; band: 95 % interval", fontsize="medium")
    return figure

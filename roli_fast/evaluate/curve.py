"""Accuracy against the radius of the attack: a robustness curve, several radii in one call."""

import io
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from roli_fast.attacks import PGD, Attack
from roli_fast.attacks.base import BallAttack
from roli_fast.attacks.ensemble import total
from roli_fast.data import Batch
from roli_fast.engine import Cost, bound
from roli_fast.engine.input_gradient import Model
from roli_fast.errors import ArgumentError, ArgumentTypeError, ConfigError, describe
from roli_fast.evaluate.accuracy import attacked, right_flags
from roli_fast.evaluate.shares import wilson_interval
from roli_fast.files import write_bytes
from roli_fast.norms import NORMS
from roli_fast.seeds import derived_generator
from roli_fast.threat import ThreatModel, check_positive, check_radius

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

    def as_json(self, *, level: float = 0.95, population: int | None = None) -> dict[str, Any]:
        """The curve in JSON's types, without the flags.

        Args:
            level: of the Wilson intervals, "low" to "high" of each point.
            population: images of the set that these are a random part of; see `wilson_interval`.
        """
        count = self.right.shape[1]
        points = []
        for eps, right in zip(self.radii, self.right.sum(1).tolist(), strict=True):
            low, high = wilson_interval(right, count, level=level, population=population)
            point = {"eps": eps, "accuracy": right / count, "right": right}
            points.append(point | {"low": low, "high": high})
        return {
            "name": self.name,
            "attack": self.attack,
            "norm": self.norm,
            "images": count,
            "level": level,
            "points": points,
            "cost": asdict(self.cost),
        }

    def plot(self, path: Path) -> None:
        """Write the curve as a PNG; `plot_curves` draws several."""
        plot_curves([self.as_json()], path)


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
    until it is fooled.

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
    if not isinstance(attack, BallAttack):
        expected = "an attack in one ball, with norm, eps and bounds"
        raise ArgumentTypeError(describe("attack", expected, type(attack).__name__))
    attack, searched = at_any_radius(attack, radii), bound(model)
    flags: list[Tensor] = []
    costs: list[Cost] = []
    for batch in batches:
        if len(batch.y):
            right, cost = right_flags(searched, batch)
            rows, costs = [right], [*costs, cost]
            for radius in radii:
                draws = derived_generator("evaluate", seed, attack.label, device=batch.x.device)
                eps = torch.full_like(batch.x[right].flatten(1)[:, 0], radius)
                fooled, found = attacked(searched, batch, right, attack, draws, eps=eps)
                costs += [found.result.cost] if found else []
                right = right & ~fooled
                rows.append(right)
            flags.append(torch.stack(rows).cpu())
        if after_batch:
            after_batch(len(batch.y))
    if not flags:
        raise ArgumentError(describe("batches", "at least one image", "none"))
    right, label = torch.cat(flags, dim=1), attack.label
    return Curve(name or label, label, str(attack.norm), (0.0, *radii), right, total(costs))


def at_any_radius(attack: BallAttack, radii: Sequence[float]) -> BallAttack:
    """The attack with steps that follow the radius.

    Raises:
        ArgumentError: a fixed step size, or radii that do not ascend, above 0, within what the
            bounds allow.
    """
    if attack.norm is None or attack.bounds is None:
        missing = "norm" if attack.norm is None else "bounds"
        fix = "Set it, or call `.under(ThreatModel(...))` first."
        raise ArgumentError(describe(missing, "a value", None, fix))
    for radius in radii:
        check_positive("radii", radius)
        check_radius(attack.norm, radius, attack.bounds, name="radii")
    if not radii or any(a >= b for a, b in itertools.pairwise(radii)):
        raise ArgumentError(describe("radii", "one or more numbers, ascending", tuple(radii)))
    if not isinstance(attack, PGD) or attack.step_size is None:
        return attack
    if attack.eps is None or not math.isclose(attack.step_size, attack.eps / 4):
        fix = "A fixed step fits one radius; None is a quarter of each."
        raise ArgumentError(describe("step_size", "None", attack.step_size, fix))
    return replace(attack, step_size=None)


def curve_attacks(
    radii: Sequence[float], attacks: Sequence[Attack], threats: Sequence[ThreatModel]
) -> list[BallAttack]:
    """The attacks of the curves, one each, ready for any radius.

    Raises:
        ConfigError: several norms, an attack that is not in one ball, radii that do not ascend, a
            fixed step size.
    """
    if not radii:
        return []
    if len(threats) > 1:
        got = ", ".join(threat.norm for threat in threats)
        fix = "Radii of different norms cannot be compared: choose one by --norm and --eps."
        raise ConfigError(describe("curve", "one norm", got, fix))
    found = []
    for attack in attacks:
        under = attack.under(threats[0])
        if not isinstance(under, BallAttack):
            raise ConfigError(describe("curve", "attacks in one ball", under.label))
        try:
            found.append(at_any_radius(under, radii))
        except ArgumentError as error:
            raise ConfigError(str(error).replace("`radii`", "`curve`")) from None
    return found


def plot_curves(curves: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write accuracy in % against the radius as a PNG; `path` is replaced in one step.

    Each curve has its Wilson interval as a band. One panel a norm, side by side, as their radii
    cannot be compared; in all of them a name has one colour and an attack one style of line.

    Args:
        curves: what `Curve.as_json` returns, or the same read from a file; at least one.
        path: of the PNG.
    """
    png = io.BytesIO()
    draw_curves(curves).savefig(png, format="png")
    write_bytes(path, png.getvalue())


def draw_curves(curves: Sequence[Mapping[str, Any]]) -> "Figure":
    """The figure of `plot_curves`. It is made without pyplot: no window system is asked for, and no
    figure of the caller changes."""
    from matplotlib.figure import Figure

    if not curves:
        raise ArgumentError(describe("curves", "at least one curve", "none"))
    norms, names, attacks = (
        list(dict.fromkeys(curve[key] for curve in curves)) for key in ("norm", "name", "attack")
    )
    figure = Figure(figsize=(1.2 + 4.4 * len(norms), 4.2), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(norms), sharey=True, squeeze=False)[0]
    panels = dict(zip(norms, axes, strict=True))
    for norm, panel in panels.items():
        unit = NORMS[norm].unit
        panel.set_xlabel(f"{norm} radius" + (f", in 1/{unit:g}" if unit != 1 else ""))
        panel.set_ylim(0, 100)
        panel.grid(alpha=0.3)
    for curve in curves:
        panel, name, points = panels[curve["norm"]], curve["name"], curve["points"]
        radii = [point["eps"] * NORMS[curve["norm"]].unit for point in points]
        low, middle, high = (
            [100 * point[key] for point in points] for key in ("low", "accuracy", "high")
        )
        colour = f"C{names.index(name) % 10}"
        style = ("-", "--", ":", "-.")[attacks.index(curve["attack"]) % 4]
        label = name if name == curve["attack"] else f"{name}, {curve['attack']}"
        line = dict(color=colour, linestyle=style, marker="o", markersize=3.5, clip_on=False)
        panel.plot(radii, middle, **line, label=label, zorder=3)
        panel.fill_between(radii, low, high, color=colour, alpha=0.18, linewidth=0)
    for panel in panels.values():
        panel.set_xlim(left=0)
        panel.legend(loc="upper right", fontsize="small", handlelength=3)
    panels[norms[0]].set_ylabel("accuracy in %")
    first = curves[0]
    title = f"{first['images']} images; band: {100 * first['level']:g} % interval"
    figure.suptitle(title, fontsize="medium")
    return figure

"""Accuracy against the radius of the attack: a robustness curve, several radii in one call."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roli_fast.attacks import FAB, PGD, Attack
from roli_fast.attacks.base import AttackInputs, BallAttack
from roli_fast.attacks.ensemble import total
from roli_fast.attacks.objective import is_right
from roli_fast.attacks.recheck import search
from roli_fast.data import Batch
from roli_fast.engine import Cost, InputGradient, bound, plain
from roli_fast.engine.input_gradient import Model
from roli_fast.errors import ArgumentError, ArgumentTypeError, ConfigError, describe
from roli_fast.evaluate.confidence import wilson_interval
from roli_fast.evaluate.curve_plot import plot_curves
from roli_fast.losses import cross_entropy
from roli_fast.seeds import derived_generator
from roli_fast.threat import ThreatModel, check_positive, check_radius


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
            points.append({**point, "low": low, "high": high})
        named = {"name": self.name, "attack": self.attack, "norm": self.norm}
        return {
            **named,
            "images": count,
            "level": level,
            "points": points,
            "cost": asdict(self.cost),
        }

    @staticmethod
    def join(curves: Sequence["Curve"]) -> "Curve":
        """One curve over the images of several, in their order: parts saved, or shared out.

        Raises:
            ArgumentError: none, or curves of another attack or other radii.
        """
        kinds = {(curve.name, curve.attack, curve.norm, curve.radii) for curve in curves}
        if len(kinds) != 1:
            got = f"{len(curves)} curves of {len(kinds)} kinds"
            raise ArgumentError(describe("curves", "parts of one curve", got))
        right = torch.cat([curve.right for curve in curves], dim=1)
        return replace(curves[0], right=right, cost=total(curve.cost for curve in curves))

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
    together: bool = False,
    name: str = "",
    after_batch: Callable[[int], None] | None = None,
) -> Curve:
    """Attack images at several radii; a sample's draws are those of `evaluate` at any one of them.

    The ball of a smaller radius lies in that of a larger one, so an image that is fooled once is
    fooled at every larger radius: it is attacked at one radius after another, the smallest first,
    until it is fooled. FAB looks for the closest adversarial image and answers all radii at once.

    Args:
        model: images (B, ...) in the attack's bounds -> logits (B, C); `Engine.bind` says how the
            attack passes images. What it finds counts if it fools the plain model, which searches
            what was lost by that once more (`recheck.search`). With FAB and an engine that is not
            exact the radii are taken one by one.
        batches: (x, y, ids) on the model's device.
        attack: searches in balls of one norm; its own eps does not matter. PGD's steps are a
            quarter of each radius; another fixed `step_size` is refused, as it fits one radius.
        radii: above 0 and ascending, in the units of the images; 0, the clean images, is added.
        seed: seeds the draws.
        together: attack every image at all radii in one batch, R times as large. The same flags
            (but for rounding that differs with the batch's composition) in fewer, larger passes,
            for GPUs that a batch leaves idle; also what is fooled already is attacked.
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
    check_radii(radii, attack)
    survey = _Survey(model, at_any_radius(attack), tuple(radii), seed)
    flags: list[Tensor] = []
    for batch in batches:
        if len(batch.y):
            flags.append(survey.flags(batch, together))
        if after_batch:
            after_batch(len(batch.y))
    if not flags:
        raise ArgumentError(describe("batches", "at least one image", "none"))
    right, label = torch.cat(flags, dim=1), attack.label
    return Curve(
        name or label, label, str(attack.norm), (0.0, *survey.radii), right, total(survey.costs)
    )


@dataclass
class _Survey:
    """One curve's question to every batch. Flags are bool (R + 1, B), on the CPU."""

    model: Model
    attack: BallAttack
    radii: tuple[float, ...]
    seed: int
    costs: list[Cost] = field(default_factory=list)

    def flags(self, batch: Batch, together: bool) -> Tensor:
        """The cheapest way: FAB's distances if the search can be taken at its word."""
        if isinstance(self.attack, FAB) and bound(self.model).engine.exact:
            return self.by_distance(batch, self.attack)
        return self.together(batch) if together else self.one_by_one(batch)

    def one_by_one(self, batch: Batch) -> Tensor:
        """One radius after another, each for what is still right."""
        right = self._right(batch.x, batch.y)
        flags = [right]
        for radius in self.radii:
            right, rows = right.clone(), right.nonzero()[:, 0]
            if len(rows):
                eps = torch.full((len(rows),), radius, dtype=batch.x.dtype, device=batch.x.device)
                right[rows] = self._withstands(batch, rows, eps)
            flags.append(right)
        return torch.stack(flags).cpu()

    def together(self, batch: Batch) -> Tensor:
        """All radii for what is right when clean, in one batch."""
        right = self._right(batch.x, batch.y)
        rows = right.nonzero()[:, 0]
        flags = right.repeat(1 + len(self.radii), 1)
        if len(rows):
            eps = torch.tensor(self.radii, dtype=batch.x.dtype, device=batch.x.device)
            copies = rows.repeat(len(self.radii))
            stays = self._withstands(batch, copies, eps.repeat_interleave(len(rows)))
            flags[1:, rows] = stays.view(len(self.radii), -1).cummin(0).values
        return flags.cpu()

    def by_distance(self, batch: Batch, attack: FAB) -> Tensor:
        """One search with the smallest radius as eps: what is met within it is fooled at them all,
        for everything else every restart and target looks for something closer."""
        right = self._right(batch.x, batch.y)
        flags = right.repeat(1 + len(self.radii), 1)
        rows = right.nonzero()[:, 0]
        if len(rows):
            x, y, ids = (tensor[rows] for tensor in self._on_device(batch))
            attack = replace(attack, minimal=False)
            eps = self.radii[0]
            inputs = AttackInputs(self.model, x, y, self._generator(x), sample_ids=ids, eps=eps)
            found = attack.search(inputs)
            self.costs.append(found.cost)
            assert found.distance is not None
            radii = torch.tensor(self.radii, dtype=x.dtype, device=x.device).double()
            flags[1:, rows] = found.distance > radii[:, None]
        return flags.cpu()

    def _withstands(self, batch: Batch, rows: Tensor, eps: Tensor) -> Tensor:
        """Whether the samples at `rows` are right after an attack at `eps`, both (K,)."""
        x, y, ids = (tensor[rows] for tensor in self._on_device(batch))
        inputs = AttackInputs(self.model, x, y, self._generator(x), sample_ids=ids, eps=eps)
        found = search(self.attack, inputs).result
        self.costs.append(found.cost)
        assert found.fooled is not None
        return ~found.fooled

    def _right(self, x: Tensor, y: Tensor) -> Tensor:
        with InputGradient(plain(self.model)) as engine, torch.no_grad():
            logits = engine.evaluate(x, y, cross_entropy)[1]
            self.costs.append(engine.cost)
        return is_right(logits, y)

    def _generator(self, x: Tensor) -> torch.Generator:
        return derived_generator("evaluate", self.seed, self.attack.label, device=x.device)

    def _on_device(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        return batch.x, batch.y, batch.ids.to(batch.x.device)


def at_any_radius(attack: BallAttack) -> BallAttack:
    """The attack with steps that follow the radius. Raises ArgumentError for a fixed step size."""
    if attack.norm is None or attack.bounds is None:
        missing = "norm" if attack.norm is None else "bounds"
        fix = "Set it, or call `.under(ThreatModel(...))` first."
        raise ArgumentError(describe(missing, "a value", None, fix))
    if not isinstance(attack, PGD) or attack.step_size is None:
        return attack
    if attack.eps is None or not math.isclose(attack.step_size, attack.eps / 4):
        fix = "A fixed step fits one radius; None is a quarter of each."
        raise ArgumentError(describe("step_size", "None", attack.step_size, fix))
    return replace(attack, step_size=None)


def check_radii(radii: Sequence[float], attack: BallAttack) -> None:
    """Raise ArgumentError unless the radii ascend, above 0, within what the bounds allow."""
    for radius in radii:
        check_positive("radii", radius)
        if attack.norm is not None and attack.bounds is not None:
            check_radius(attack.norm, radius, attack.bounds, name="radii")
    if not radii or any(a >= b for a, b in itertools.pairwise(radii)):
        raise ArgumentError(describe("radii", "one or more numbers, ascending", tuple(radii)))


def curve_attacks(
    radii: Sequence[float], attacks: Sequence[Attack], threats: Sequence[ThreatModel]
) -> list[BallAttack]:
    """The attacks of the curves, one each, ready for any radius.

    Raises:
        ConfigError: several norms, an attack that is not in one ball, radii that do not ascend.
        ArgumentError: a fixed step size.
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
            check_radii(radii, under)
        except ArgumentError as error:
            raise ConfigError(str(error).replace("`radii`", "`curve`")) from None
        found.append(at_any_radius(under))
    return found

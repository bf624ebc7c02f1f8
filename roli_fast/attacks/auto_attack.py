"""AutoAttack (Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of
diverse parameter-free attacks", arXiv:2003.01690; L1: "Mind the box", arXiv:2103.01208)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from roli_fast.attacks import warning_signs
from roli_fast.attacks.apgd import APGD, APGDT
from roli_fast.attacks.base import ATTACKS, Attack, AttackInputs, BallAttack
from roli_fast.attacks.ensemble import EnsembleResult, search_in_turn
from roli_fast.attacks.fab import FAB, FABT
from roli_fast.attacks.square import Square
from roli_fast.engine import bound
from roli_fast.errors import ArgumentError, check_choice, describe
from roli_fast.norms import NORMS

STEPS, QUERIES = 100, 5000
"""As published."""

VERSIONS: dict[str, tuple[str, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
"""Version -> its components, in the order of the authors' code."""

PRESETS: dict[str, tuple[str, ...]] = VERSIONS | {"apgd": ("apgd-ce", "apgd-t")}
"""Also what papers on several norms report as AutoAttack (RAMP, E-AT): "apgd"."""

COMPONENTS: dict[str, tuple[Callable[..., Attack], dict[str, Any]]] = {
    "apgd-ce": (APGD, dict(loss="ce")),
    "apgd-dlr": (APGD, dict(loss="dlr")),
    "apgd-t": (APGDT, dict(targets=9)),
    "fab": (FAB, dict(minimal=False)),
    "fab-t": (FABT, dict(targets=9, minimal=False)),
    "square": (Square, dict(rescale_schedule=False)),
}
"""Component -> attack and its settings in every version. FAB need not find the closest image."""


def component_settings(version: str, norm: str | None) -> dict[str, dict[str, Any]]:
    """Component -> what this version and norm add to `COMPONENTS`, as in the authors' code."""
    if version == "plus":
        return {name: dict(restarts=5) for name in ("apgd-ce", "apgd-dlr", "fab")}
    if version == "rand":
        return {name: dict(eot=20) for name in ("apgd-ce", "apgd-dlr")}
    if norm is None or not NORMS[norm].sparse:
        return {}
    return {
        "apgd-ce": dict(restarts=5, large_radius=True),
        "apgd-dlr": dict(restarts=5, large_radius=True),
        "apgd-t": dict(targets=5, large_radius=True),
    }


@ATTACKS.register("autoattack")
@dataclass(frozen=True)
class AutoAttack(BallAttack):
    """Several attacks one after another, each on the images that those before left right.

    An image's result is the first that fooled the model, checked by one more pass of it; what none
    fools comes back as it was. Beside the attacks it costs 1 forward on all images, 3 forwards and
    2 input-backwards on up to 64 of them for the warnings (`warning_signs`), and 1 forward an
    attack on what it found. Fewer classes than 10 or 4 are followed, and the result says so.

    With an engine of low precision it searches in that, and what fools the model there
    but not in its own precision does not count and is searched again in that. `lost` of the result
    says how many these were.

    Args:
        version: "standard", APGD-CE, APGD-T, FAB-T and Square (in l1 with five restarts of APGD-CE,
            5 targets of APGD-T and large radii); "plus", with APGD-DLR and FAB and five restarts;
            "rand", APGD-CE and APGD-DLR over 20 draws of a model that draws; "apgd", APGD-CE and
            APGD-T of standard alone, 10 runs in each norm: the published protocol of RAMP and E-AT;
            or "custom".
        attacks: components of version custom: some of apgd-ce, apgd-dlr, apgd-t, fab, fab-t and
            square, in their order, with the settings of version standard (the authors' custom has
            five restarts of APGD and FAB and no large radii; `compat.autoattack` keeps that).
        steps: of every gradient attack.
        n_queries: of Square.
    """

    version: Literal["standard", "plus", "rand", "apgd", "custom"] = "standard"
    attacks: tuple[str, ...] = ()
    steps: int = STEPS
    n_queries: int = QUERIES

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("version", self.version, (*PRESETS, "custom"))
        object.__setattr__(self, "attacks", tuple(self.attacks))  # a list from YAML
        self._check_attacks()
        _ = self.parts  # raises where a component cannot take these settings

    def _check_attacks(self) -> None:
        known = ", ".join(COMPONENTS)
        if self.version != "custom":
            if self.attacks:
                fix = "Set version='custom' to choose the components."
                expected = f"none with version={self.version!r}"
                raise ArgumentError(describe("attacks", expected, self.attacks, fix))
            return
        if not self.attacks or any(name not in COMPONENTS for name in self.attacks):
            raise ArgumentError(describe("attacks", f"some of: {known}", self.attacks))
        if len(set(self.attacks)) < len(self.attacks):
            raise ArgumentError(describe("attacks", "each component once", self.attacks))

    @property
    def names(self) -> tuple[str, ...]:
        """The components' names, in their order."""
        return PRESETS.get(self.version, self.attacks)

    @property
    def label(self) -> str:
        """ "autoattack-standard"; a custom one lists its components; steps and queries other than
        the published ones are told."""
        name = "+".join(self.attacks) if self.version == "custom" else self.version
        parts = [f"autoattack-{name}"]
        parts += [str(self.steps)] if self.steps != STEPS else []
        parts += [f"q{self.n_queries}"] if self.n_queries != QUERIES else []
        return "-".join(parts)

    @property
    def parts(self) -> tuple[Attack, ...]:
        """The components as attacks."""
        more = component_settings(self.version, self.norm)
        return tuple(self.part(name, more.get(name, {})) for name in self.names)

    def part(self, name: str, more: dict[str, Any]) -> Attack:
        """One component, with `more` than its settings in every version: a subclass may have
        others."""
        kind, settings = COMPONENTS[name]
        size = dict(n_queries=self.n_queries) if name == "square" else dict(steps=self.steps)
        common = dict(norm=self.norm, eps=self.eps, bounds=self.bounds)
        return kind(**common, **settings | more, **size)

    def search(self, inputs: AttackInputs) -> EnsembleResult:
        model = bound(inputs.model, inputs.engine)
        ball, inputs = self.ball(inputs)
        draws = self.version == "rand"
        look = warning_signs.first_look(model, inputs.x, inputs.y, ball, draws=draws)
        parts = self.parts
        found = search_in_turn(parts, replace(inputs, model=model, engine=None), look.right)
        assert found.fooled_by is not None
        counts = [int((found.fooled_by == number).sum()) for number in range(len(parts))]
        signs = [*look.signs, *warning_signs.black_box(parts, counts)]
        notes = (*warning_signs.log_once(model, signs), *ball.notes, *found.notes)
        return replace(found, cost=look.cost + found.cost, notes=notes)

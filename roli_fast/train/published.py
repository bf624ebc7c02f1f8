"""The published settings of the RoLI paper, and the experiments that they make.

The tables are roli_fast/recipes/published/<data set>.yaml: one line for every configuration file of
the release, 51 in all.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from roli_fast.configuration import RECIPES, read_yaml
from roli_fast.errors import ConfigError, describe

DATA = ("cifar10", "cifar100", "caltech256", "cub", "stanford_dogs")
"""Data sets with published settings."""

TUNINGS = ("linear", "full", "bias", "lora", "adapter", "prompt")
"""Tuning methods with published settings; RoLI has none for linear and prompt."""

NAMES: dict[str, tuple[str, ...]] = {
    "roli": ("roli",),
    "ranli": ("ranli",),
    "ranli_matched": ("ranli_matched",),
    "compare": ("roli", "ranli", "ranli_matched"),
    "lp_ft": ("lp", "ft", "lp_ft"),
    "lp_ft_compare": ("ft", "lp_ft", "ranli", "roli"),
}
"""Recipe -> methods that it runs. "ranli" has the published epochs, "ranli_matched" those of both
stages of RoLI, the control that the paper lacks. Both clean fine-tunes, of ft and lp_ft, are RoLI's
published second stage without its attack: rates that differ would hide what the head does."""


@dataclass(frozen=True)
class Setting:
    """One configuration of the release.

    `init` is "ranli" or "roli", or "roli_eval" for the one file that only tests. `base_lr` and
    `weight_decay` are as written there; `options` are those of the tuning method.
    """

    data: str
    tuning: str
    init: str
    optimizer: str
    base_lr: float
    weight_decay: float
    epochs: int
    batch_size: int
    options: dict[str, Any]

    @property
    def lr(self) -> float:
        """The peak rate."""
        return self.base_lr / 256 * self.batch_size


@cache
def _table(data: str) -> dict[str, Any]:
    return read_yaml(RECIPES / "published" / f"{data}.yaml")


def settings() -> list[Setting]:
    """Every published setting."""
    return [
        setting(data, tuning, init)
        for data in DATA
        for tuning, inits in _table(data)["settings"].items()
        for init in inits
    ]


def setting(data: str, tuning: str, init: str) -> Setting:
    """The published setting of a data set, a tuning method and a way to start the head.

    Raises:
        ConfigError: there is none; with the known names.
    """
    fix = "For other images write a configuration, or set every field."
    check_known("--data", data, DATA, fix)
    check_known("--tuning", tuning, TUNINGS)
    common, table = _table("common"), _table(data)
    found = table["settings"][tuning]
    if init not in found:
        having = [name for name, inits in table["settings"].items() if init in inits]
        fix = "The paper has no RoLI with this one: use --recipe ranli."
        raise ConfigError(describe("--tuning", f"one of: {', '.join(having)}", repr(tuning), fix))
    cell = dict(found[init])
    return Setting(
        data=data,
        tuning=tuning,
        init=init,
        optimizer=_optimizer(tuning)["name"],
        base_lr=cell.pop("base_lr"),
        weight_decay=cell.pop("weight_decay"),
        epochs=cell.pop("epochs", table["epochs"]),
        batch_size=common["stage"]["batch_size"],
        options={k: v for k, v in common["tunings"][tuning].items() if k != "name"} | cell,
    )


def check_known(flag: str, value: str, known: tuple[str, ...], fix: str = "") -> None:
    """Raise `ConfigError` unless the flag of a recipe has one of the known values."""
    if value not in known:
        got = repr(value) if value else "nothing"
        raise ConfigError(describe(flag, f"one of: {', '.join(known)} with --recipe", got, fix))


def _optimizer(tuning: str) -> dict[str, Any]:
    optimizers = _table("common")["optimizers"]
    return optimizers.get(tuning, optimizers["others"])


def recipe(name: str, *, data: str, tuning: str) -> dict[str, Any]:
    """The configuration tree of a recipe, as a file would hold it.

    Every stage that a method of the recipe or a control of it can need is filled in: `probe` with
    the published linear probe, `finetune` with RoLI's second stage (RanLI's where the paper has no
    RoLI), `ranli` with RanLI's.

    Args:
        name: one of `NAMES`.
        data: one of `DATA`.
        tuning: one of `TUNINGS`.

    Raises:
        ConfigError: a setting that the paper does not have.
    """
    ranli = setting(data, tuning, "ranli")
    common, table = _table("common"), _table(data)
    needed = "roli" in NAMES[name] or "roli" in table["settings"][tuning]
    roli = setting(data, tuning, "roli") if needed else ranli
    return {
        "data": dict(table["data"]),
        "model": common["model"] | table.get("model", {}),
        "methods": list(NAMES[name]),
        "threat": common["threat"],
        "probe": _stage(setting(data, "linear", "ranli")),
        "finetune": _stage(roli),
        "ranli": _stage(ranli),
        "validation": common["validation"],
        "test": common["test"],
    }


def _stage(chosen: Setting) -> dict[str, Any]:
    rates = {"lr": chosen.lr, "weight_decay": chosen.weight_decay}
    return _table("common")["stage"] | {
        "epochs": chosen.epochs,
        "tuning": {"name": chosen.tuning, **chosen.options},
        "optimizer": _optimizer(chosen.tuning) | rates,
    }

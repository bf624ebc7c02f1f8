"""The published settings of the RoLI and RAMP papers, and the experiments that they make.

The tables are roli_fast/recipes/published/*.yaml: of RoLI one line for every configuration file of
the release, 51 in all; several_norms.yaml has RAMP's and its baselines'.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from roli_fast.configuration import RECIPES, read_yaml
from roli_fast.errors import ConfigError, describe
from roli_fast.peft import METHODS

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


NORM_RECIPES: dict[str, tuple[dict[str, Any], str]] = {
    "ramp": ({"name": "ramp", "source": "linf", "target": "l1"}, "multi_apgd"),
    "eat": ({"name": "eat"}, "multi_apgd"),
    "max": ({"name": "adversarial"}, "multi_apgd"),
    "msd": ({"name": "adversarial"}, "msd"),
    "sat": ({"name": "sat"}, "multi_apgd"),
    "avg": ({"name": "avg"}, "multi_apgd"),
}
"""Recipe -> its objective, and the name of its attack."""

STARTS = {"scratch": ("scratch", "pretrain"), "finetune": ("finetune", "finetune")}
"""Start -> the method that runs, and its stage."""

WHERE = ("script", "text")
"""Where a number is taken from that the paper's text and its scripts tell differently."""


@dataclass(frozen=True)
class NormSetting:
    """A row of the table: one model on one kind of images, trained from one start.

    `pairing` is RAMP's lambda. `row` names the model whose row it is: another one than `model`
    where the paper has none for that.
    """

    data: str
    start: str
    model: str
    row: str
    epochs: int
    lr: float
    schedule: dict[str, Any]
    batch_size: int
    weight_decay: float
    decay: str
    attack: dict[str, Any]
    threat: dict[str, Any]
    pairing: float


def norm_data() -> tuple[str, ...]:
    """Data sets with settings."""
    return tuple(
        name for images in _table("several_norms")["images"].values() for name in images["data"]
    )


def norm_setting(
    data: str, start: str, model: str | None = None, *, where: str = "script"
) -> NormSetting:
    """A row of the table.

    Args:
        data: one of `norm_data()`.
        start: "scratch" or "finetune".
        model: its name; None takes the one that the paper's tables begin with. One that the paper
            does not have gets the row of a like one.
        where: "script" or "text", for numbers that they tell differently.

    Raises:
        ConfigError: an unknown name, or no training from scratch on these images.
    """
    check_known("--data", data, norm_data(), "For other images write a configuration.")
    check_known("--start", start, tuple(STARTS))
    check_known("--published", where, WHERE)
    images = _images(data)
    if start not in images["settings"]:
        fix = "Fine-tune a robust model: --start finetune --model.weights FILE."
        raise ConfigError(describe("--start", f"finetune for {data}", start, fix))
    rows: dict[str, Any] = images["settings"][start]
    model = str(model or images["model"])
    row = model if model in rows else str(images["others"][start])
    cell: dict[str, Any] = {
        name: value[where] if isinstance(value, dict) and where in value else value
        for name, value in rows[row].items()
    }
    return NormSetting(
        data=data,
        start=start,
        model=model,
        row=row,
        decay=_table("several_norms")["starts"][start]["decay"],
        attack=images["attack"],
        threat=images["threat"],
        pairing=cell.pop("lambda"),
        **cell,
    )


def _images(data: str) -> dict[str, Any]:
    return next(
        images for images in _table("several_norms")["images"].values() if data in images["data"]
    )


def norm_recipe(  # noqa: PLR0913 - what a command line may choose
    name: str,
    *,
    data: str,
    start: str = "finetune",
    model: str | None = None,
    tuning: str = "",
    where: str = "script",
) -> dict[str, Any]:
    """The configuration tree of a recipe, as a file would hold it; `note` says what is published.

    Args:
        name: one of `NORM_RECIPES`.
        data: as for `norm_setting`, like `start`, `model` and `where`.
        start: "finetune" needs `model.weights`, a classifier that is robust in one norm.
        model: name of the network.
        tuning: which parameters train; "" is all of them, as published.
        where: "script" or "text".

    Raises:
        ConfigError: an unknown name, or a combination that makes no sense.
    """
    chosen = norm_setting(data, start, model, where=where)
    if tuning:
        check_known("--tuning", tuning, METHODS.names())
    if start == "scratch" and tuning not in ("", "full"):
        fix = "Everything has to be learnt: leave it out, or take --start finetune."
        raise ConfigError(describe("--tuning", "full with --start scratch", repr(tuning), fix))
    method, stage = STARTS[start]
    images, table = _images(data), _table("several_norms")
    objective, attack = NORM_RECIPES[name]
    is_ramp = name == "ramp"
    training = table["stage"] | {
        "epochs": chosen.epochs,
        "batch_size": chosen.batch_size,
        "tuning": {"name": tuning or "full"},
        "objective": objective | ({"weight": chosen.pairing} if is_ramp else {}),
        "attack": {"name": attack} | _steps(chosen.attack, attack),
        "schedule": chosen.schedule,
        "optimizer": table["optimizer"]
        | {"lr": chosen.lr, "weight_decay": chosen.weight_decay, "decay": chosen.decay},
    }
    projection = table["starts"][start].get("gradient_projection")
    if projection and is_ramp:
        training["gradient_projection"] = projection
    return {
        "data": images["data"][data],
        "model": {"name": chosen.model},
        "methods": [method],
        "threat": chosen.threat,
        stage: training,
        "validation": table["validation"],
        "test": table["test"],
        "note": _note(name, chosen, tuning, where),
    }


def _steps(steps: dict[str, Any], attack: str) -> dict[str, Any]:
    """MSD has one iterate for all norms, hence one number of steps: the largest."""
    return {"steps": max(steps.values())} if attack == "msd" else steps


def _note(name: str, chosen: NormSetting, tuning: str, where: str) -> str:
    """What the run repeats, where the number comes from, and what nobody has published."""
    how = "from scratch" if chosen.start == "scratch" else "fine-tuning"
    text = f"{name}, {how}, settings of arXiv:2402.06827"
    if name == "ramp":
        other = WHERE[1 - WHERE.index(where)]
        told = norm_setting(chosen.data, chosen.start, chosen.model, where=other).pairing
        text += f"; lambda {chosen.pairing:g} of the {where} ({other}: {told:g})"
    new = [chosen.data] if chosen.data in _images(chosen.data)["unpublished"] else []
    new += [f"{chosen.model}, settings of {chosen.row}"] if chosen.model != chosen.row else []
    new += [f"tuning {tuning}"] if tuning not in ("", "full") else []
    return f"{text}; not published: {'; '.join(new)}" if new else text

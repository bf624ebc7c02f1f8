"""The experiments of the RoLI and RAMP papers, as configuration trees.

The numbers are in roli_fast/recipes/published/*.yaml: of RoLI one line for every configuration file
of the release, 51 in all; several_norms.yaml has RAMP's and its baselines'.
"""

from functools import cache
from typing import Any

from roli_fast.configuration import RECIPES, read_yaml
from roli_fast.errors import ConfigError, describe
from roli_fast.peft import METHODS

DATA = ("cifar10", "cifar100", "caltech256", "cub", "stanford_dogs")
"""Data sets with published settings of RoLI."""

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

NORM_RECIPES = ("ramp", "eat", "max", "msd", "sat", "avg")
"""Recipes against linf, l2 and l1."""

STARTS = {"scratch": ("scratch", "pretrain"), "finetune": ("finetune", "finetune")}
"""Start -> the method that runs, and its stage."""


@cache
def table(name: str) -> dict[str, Any]:
    """One of the published tables."""
    return read_yaml(RECIPES / "published" / f"{name}.yaml")


def _check_known(flag: str, value: str, known: tuple[str, ...], fix: str = "") -> None:
    if value not in known:
        got = repr(value) if value else "nothing"
        raise ConfigError(describe(flag, f"one of: {', '.join(known)} with --recipe", got, fix))


def recipe(name: str, *, data: str, tuning: str) -> dict[str, Any]:
    """The configuration tree of one of RoLI's recipes, as a file would hold it.

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
    fix = "For other images write a configuration, or set every field."
    _check_known("--data", data, DATA, fix)
    _check_known("--tuning", tuning, TUNINGS)
    common, settings = table("common"), table(data)["settings"]
    has_roli = "roli" in settings[tuning]
    if "roli" in NAMES[name] and not has_roli:
        having = ", ".join(method for method in settings if "roli" in settings[method])
        fix = "The paper has no RoLI with this one: use --recipe ranli."
        raise ConfigError(describe("--tuning", f"one of: {having}", repr(tuning), fix))
    return {
        "data": dict(table(data)["data"]),
        "model": common["model"] | table(data).get("model", {}),
        "methods": list(NAMES[name]),
        "threat": common["threat"],
        "probe": _stage(data, "linear", "ranli"),
        "finetune": _stage(data, tuning, "roli" if has_roli else "ranli"),
        "ranli": _stage(data, tuning, "ranli"),
        "validation": common["validation"],
        "test": common["test"],
    }


def _stage(data: str, tuning: str, init: str) -> dict[str, Any]:
    """One setting; what its line has beside rates and epochs is of the tuning."""
    common, cell = table("common"), dict(table(data)["settings"][tuning][init])
    optimizers, batch = common["optimizers"], common["stage"]["batch_size"]
    lr, decay = cell.pop("base_lr") / 256 * batch, cell.pop("weight_decay")
    return common["stage"] | {
        "epochs": cell.pop("epochs", table(data)["epochs"]),
        "tuning": common["tunings"][tuning] | cell,
        "optimizer": optimizers.get(tuning, optimizers["others"])
        | {"lr": lr, "weight_decay": decay},
    }


def norm_recipe(  # noqa: PLR0913 - what a command line may choose
    name: str,
    *,
    data: str,
    start: str = "finetune",
    model: str | None = None,
    tuning: str = "",
    where: str = "script",
) -> dict[str, Any]:
    """The configuration tree of RAMP or one of its baselines; `note` says what is published.

    Args:
        name: one of `NORM_RECIPES`.
        data: "cifar10", "cifar100" or "image_folder".
        start: "scratch", or "finetune", which needs `model.weights`, a classifier that is robust in
            one norm.
        model: name of the network; None takes the one that the paper's tables begin with. One that
            the paper does not have gets the row of a like one.
        tuning: which parameters train; "" is all of them, as published.
        where: "script" or "text", for numbers that they tell differently.

    Raises:
        ConfigError: an unknown name, or a combination that makes no sense.
    """
    whole, images = table("several_norms"), _images(data)
    _check_known("--start", start, tuple(STARTS))
    _check_known("--published", where, ("script", "text"))
    _check_known("--tuning", tuning or "full", METHODS.names())
    if start not in images["settings"]:
        fix = "Fine-tune a robust model: --start finetune --model.weights FILE."
        raise ConfigError(describe("--start", f"finetune for {data}", start, fix))
    if start == "scratch" and tuning not in ("", "full"):
        fix = "Everything has to be learnt: leave it out, or take --start finetune."
        raise ConfigError(describe("--tuning", "full with --start scratch", repr(tuning), fix))
    model = str(model or images["model"])
    rows, like = images["settings"][start], images["others"][start]
    cell = {n: _published(v, where) for n, v in rows.get(model, rows[like]).items()}
    weight, own = cell.pop("lambda"), whole["recipes"][name]
    optimizer = {"lr": cell.pop("lr"), "weight_decay": cell.pop("weight_decay")}
    optimizer["decay"] = whole["starts"][start]["decay"]
    steps = images["attack"]
    if own["attack"] == "msd":  # one iterate for all norms, hence one number of steps
        steps = {"steps": max(steps.values())}
    method, stage = STARTS[start]
    training = whole["stage"] | cell
    training |= {
        "tuning": {"name": tuning or "full"},
        "objective": own["objective"] | ({"weight": weight} if name == "ramp" else {}),
        "attack": {"name": own["attack"]} | steps,
        "optimizer": whole["optimizer"] | optimizer,
    }
    if name == "ramp" and start == "scratch":
        training["gradient_projection"] = whole["gradient_projection"]
    return {
        "data": images["data"][data],
        "model": {"name": model},
        "methods": [method],
        "threat": images["threat"],
        stage: training,
        "validation": whole["validation"],
        "test": whole["test"],
        "note": _note(name, data, start, model, tuning, where),
    }


def _images(data: str) -> dict[str, Any]:
    """The part of the table about images of this kind."""
    kinds = table("several_norms")["images"].values()
    known = {one: images for images in kinds for one in images["data"]}
    _check_known("--data", data, tuple(known), "For other images write a configuration.")
    return known[data]


def _published(value: Any, where: str) -> Any:
    """Of {text: a, script: b} one, of all else itself."""
    return value[where] if isinstance(value, dict) and where in value else value


def _note(name: str, data: str, start: str, model: str, tuning: str, where: str) -> str:
    """What the run repeats, where the number comes from, and what nobody has published."""
    images = _images(data)
    rows, like = images["settings"][start], images["others"][start]
    text = f"{name}, {'from scratch' if start == 'scratch' else 'fine-tuning'}"
    text += ", settings of arXiv:2402.06827"
    if name == "ramp":
        told = rows.get(model, rows[like])["lambda"]
        other = "text" if where == "script" else "script"
        text += f"; lambda {_published(told, where):g} of the {where}"
        text += f" ({other}: {_published(told, other):g})"
    new = [data] if data in images["unpublished"] else []
    new += [f"{model}, settings of {like}"] if model not in rows else []
    new += [f"tuning {tuning}"] if tuning not in ("", "full") else []
    return f"{text}; not published: {'; '.join(new)}" if new else text

"""The experiments of the RoLI, RAMP, TWINS and AutoLoRa papers, as configuration trees.

The numbers are in roli_fast/recipes/published/*.yaml, merged here: of RoLI one line for every
configuration file of the release, 51 in all; several_norms.yaml has RAMP's and its baselines',
twins_autolora.yaml the others'.
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
    "roli_fast": ("roli_fast", "roli"),
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

RIVALS = ("twins", "twins_trades", "autolora")
"""Recipes of other methods for robust backbones, which are the method ranli here."""

STARTS = {"scratch": ("scratch", "pretrain"), "finetune": ("finetune", "finetune")}
"""Start -> the method that runs, and its stage."""


@cache
def table(name: str) -> dict[str, Any]:
    """One of the published tables."""
    return read_yaml(RECIPES / "published" / f"{name}.yaml")


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
    _check_known(
        "--data", data, DATA, "For other images write a configuration, or set every field."
    )
    _check_known("--tuning", tuning, TUNINGS)
    common, own = table("common"), table(data)
    has_roli = "roli" in own["settings"][tuning]
    if "roli" in NAMES[name] and not has_roli:
        having = ", ".join(method for method, inits in own["settings"].items() if "roli" in inits)
        fix = "The paper has no RoLI with this one: use --recipe ranli."
        raise ConfigError(describe("--tuning", f"one of: {having}", repr(tuning), fix))
    return {
        "data": own["data"],
        "model": common["model"] | own.get("model", {}),
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
    optimizer = common["optimizers"].get(tuning, common["optimizers"]["others"])
    lr = cell.pop("base_lr") / 256 * common["stage"]["batch_size"]
    return common["stage"] | {
        "epochs": cell.pop("epochs", table(data)["epochs"]),
        "optimizer": optimizer | {"lr": lr, "weight_decay": cell.pop("weight_decay")},
        "tuning": common["tunings"][tuning] | cell,
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
    whole = table("several_norms")
    known = {one: images for images in whole["images"].values() for one in images["data"]}
    _check_known("--data", data, tuple(known), "For other images write a configuration.")
    _check_known("--published", where, ("script", "text"))
    images = known[data]
    _check_start(start, tuning, data, images)
    model, like = model or images["model"], images["others"][start]
    rows = images["settings"][start]
    told = rows.get(model, rows[like])
    row = {n: v[where] if isinstance(v, dict) and where in v else v for n, v in told.items()}
    weight, attack = row.pop("lambda"), whole["recipes"][name]["attack"]
    ramp = {"objective": {"weight": weight}} | whole["of_ramp"][start] if name == "ramp" else {}
    own = {"tuning": {"name": tuning or "full"}, "objective": whole["recipes"][name]["objective"]}
    own["attack"] = {"name": attack} | images["attacks"][attack]
    method, stage = STARTS[start]
    new = [data] if data in images["unpublished"] else []
    new += [f"{model}, settings of {like}"] if model not in rows else []
    new += [f"tuning {tuning}"] if tuning not in ("", "full") else []
    note = f"{name}, start {start}, {where}'s settings of arXiv:2402.06827"
    return {
        "data": images["data"][data],
        "model": {"name": model},
        "methods": [method],
        "threat": images["threat"],
        stage: merged(whole["stage"], whole["starts"][start], images["stage"], row, own, ramp),
        "validation": whole["validation"],
        "test": whole["test"],
        "note": f"{note}; not published: {'; '.join(new)}" if new else note,
    }


def rival_recipe(name: str, *, data: str, tuning: str = "") -> dict[str, Any]:
    """The configuration tree of one of `RIVALS`, its method in the stage `ranli`.

    For a comparison, the method roli, `probe` is RoLI's published one and `finetune` the same
    fine-tune with plain adversarial training.

    Raises:
        ConfigError: an unknown name, or another tuning than full.
    """
    _check_known("--data", data, DATA, "For other images set the fields of ranli by flags.")
    _check_known("--tuning", tuning or "full", ("full",), "For another set --ranli.tuning.")
    whole, common, own = table("twins_autolora"), table("common"), table(data)
    row, told = whole[name], whole[name]["data"]
    of_data = told.get(data) or told.get(row.get("others"), {})
    stage = merged(whole["stage"], row["stage"], of_data)
    plain = {field: value for field, value in stage.items() if field != "objective"}
    note = f"{name}, settings of its authors' code"
    return {
        "data": own["data"],
        "model": whole["model"] | own.get("model", {}),
        "methods": ["ranli"],
        "threat": whole["threat"],
        "probe": _stage(data, "linear", "ranli"),
        "finetune": plain,
        "ranli": merged({"objective": row["objective"]}, stage),
        "validation": common["validation"],
        "test": common["test"],
        "note": note if data in told else f"{note} for {row['others']}",
    }


def _check_start(start: str, tuning: str, data: str, images: dict[str, Any]) -> None:
    _check_known("--start", start, tuple(STARTS))
    _check_known("--tuning", tuning or "full", METHODS.names())
    if start not in images["settings"]:
        fix = "Fine-tune a robust model: --start finetune --model.weights FILE."
        raise ConfigError(describe("--start", f"finetune for {data}", start, fix))
    if start == "scratch" and tuning not in ("", "full"):
        fix = "Everything has to be learnt: leave it out, or take --start finetune."
        raise ConfigError(describe("--tuning", "full with --start scratch", repr(tuning), fix))


def merged(*trees: dict[str, Any]) -> dict[str, Any]:
    """One tree of all; where several have a value, the last one's."""
    out: dict[str, Any] = {}
    for tree in trees:
        for name, value in tree.items():
            both = isinstance(value, dict) and isinstance(out.get(name), dict)
            out[name] = merged(out[name], value) if both else value
    return out


def _check_known(flag: str, value: str, known: tuple[str, ...], fix: str = "") -> None:
    if value not in known:
        got = repr(value) if value else "nothing"
        raise ConfigError(describe(flag, f"one of: {', '.join(known)} with --recipe", got, fix))

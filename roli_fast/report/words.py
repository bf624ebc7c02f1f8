"""What was run and what came of it: the facts and sentences that depend on the runs."""

import shlex
from collections.abc import Iterator
from itertools import product
from typing import Any

from roli_fast.attacks import AutoAttack
from roli_fast.evaluate import attack_passes
from roli_fast.norms import NORMS
from roli_fast.report.plots import share
from roli_fast.report.read import CONDITIONS, Run, Tree, at, values
from roli_fast.report.subjects import Page
from roli_fast.report.tables import Table, table
from roli_fast.report.text import NONE, count, listed, method_name, p_value, percent, points, radius
from roli_fast.running.folder import CONFIG
from roli_fast.running.text import duration

UPDATE = 3
"""Passes of an update of the weights beside its attack: forward, and backward for both."""

LEVEL = 0.05
"""Of p, from which on a difference is not called one."""

FEW = 2
"""Pairs of methods that are told in sentences; of more there is a table."""

TWINS = ({"roli", "ranli"}, {"lp_ft", "ft"})
"""Methods that differ in the head that the fine-tune begins with."""

FOLLOWS = {"ranli": "finetune", "ranli_matched": "ranli", "ft": "finetune"}
"""Stages that follow from another where their own field is null."""

ASIDE = {"device", "threads", "workers", "checkpoint_minutes", "report", "analysis_images"}
"""Fields of the configuration that say where and how a run was carried out."""


def threat_text(run: Run) -> str:
    """ "linf 8/255 and l2 0.5"."""
    threat = run.config.get("threat") or {}
    norms = [threat.get("norm"), *(threat.get("other_norms") or ())]
    radii = [threat.get("eps"), *(threat.get("other_eps") or ())]
    return listed([radius(n, e) for n, e in zip(norms, radii, strict=False) if n is not None])


def data_text(run: Run) -> str:
    """ "digits"; of images of one's own the folder's name and its kind."""
    name, root = (str(at(run.config, "data", key) or "") for key in ("name", "root"))
    return f"{root.rstrip('/').rsplit('/', 1)[-1]} ({name})" if root else name or "data"


def attack_text(attack: Any) -> str:
    """ "pgd, 7 steps"; what follows the threat is not said again."""
    if not isinstance(attack, dict):
        return "none: clean images"
    parts = [str(attack.get("name"))]
    if attack.get("steps"):
        parts.append(count(attack["steps"], "steps"))
    if (attack.get("restarts") or 1) > 1:
        parts.append(f"{attack['restarts']} restarts")
    if attack.get("loss") not in (None, "ce"):
        parts.append(f"loss {attack['loss']}")
    if isinstance(attack.get("norm"), str) and attack.get("eps"):
        parts.append(radius(attack["norm"], attack["eps"]))
    return ", ".join(parts)


def configuration(run: Run) -> str:
    """config.yaml as it is."""
    return (run.folder / CONFIG).read_text(encoding="utf-8")


def training_images(run: Run) -> int | None:
    """How many there are; None where a run that draws some more than once cannot tell."""
    projected = [at(run.config, name, "gradient_projection") for name in run.config]
    last = (run.results or [{}])[-1]
    images = (last.get("train_images") or 0.5) / max(1, last.get("epochs") or 1)
    return int(images) if images == int(images) and not any(projected) else None


def stages(run: Run) -> Table:
    """How the stages that ran train, each once; none before one has finished."""
    names = [name for method in run.methods for name in method.stages]
    if run.config.get("source") and names:
        names.insert(0, "pretrain")
    return table([row for name in dict.fromkeys(names) if (row := _stage(run, name))])


def _stage(run: Run, name: str) -> dict[str, str] | None:
    """A row of the table; None where the configuration has no such stage."""
    stage, title = run.config.get(name), name
    if stage is None and (other := FOLLOWS.get(name)):
        other = other if run.config.get(other) else "finetune"
        stage, title = run.config.get(other), f"{name} (as {other})"
        if name == "ft" and stage:
            stage = stage | {"attack": None, "objective": {"name": "adversarial"}}
    if not isinstance(stage, dict):
        return None
    done = [s for s in run.results if s["name"] == name] or [stage]
    objective = _named(stage.get("objective"), ("beta", "weight", "label_smoothing"))
    if not stage.get("attack"):  # the adversarial objective on clean images
        objective = objective.replace("adversarial", "cross-entropy", 1)
    return {
        "stage": title,
        "epochs": str(done[0].get("epochs")),
        "trains": _named(stage.get("tuning"), ("rank", "alpha")),
        "objective": objective,
        "attack": attack_text(stage.get("attack")) + _rise(stage),
        "optimiser": _optimizer(stage.get("optimizer") or {}),
        "batch": str(stage.get("batch_size")),
    }


def _rise(stage: Tree) -> str:
    """ "; radius: ramp, start 0.24, end 0.74"; nothing for one that stays."""
    how = stage.get("eps_schedule") or {}
    moves = bool(stage.get("attack")) and how.get("name") not in (None, "constant")
    fields = ("start", "end", "patience", "tolerance", "rise")
    return f"; radius: {_named(how, fields)}" if moves else ""


def _optimizer(optimizer: Tree) -> str:
    if optimizer.get("name") == "lbfgs":
        tried = ", ".join(f"{s:g}" for s in optimizer.get("strengths") or ())
        return f"lbfgs, best of L2 strengths {tried}"
    rate = optimizer.get("lr")
    shown = "by the features' norm" if rate is None else rate
    return f"{optimizer.get('name')}, rate {shown}, decay {optimizer.get('weight_decay')}"


def _named(part: Any, fields: tuple[str, ...]) -> str:
    """ "lora, rank 8"."""
    if not isinstance(part, dict):
        return str(part) if part else NONE
    return ", ".join([str(part.get("name")), *(f"{f} {part[f]}" for f in fields if part.get(f))])


def differing(page: Page) -> Table:
    """Fields of the configurations that differ between the runs."""
    flat = [dict(_flat(run.config)) for run in page.runs]
    names = dict.fromkeys(name for one in flat for name in one if name.split(".")[0] not in ASIDE)
    return table(
        {"field": name}
        | {run: one.get(name, NONE) for run, one in zip(page.names, flat, strict=True)}
        for name in names
        if len({one.get(name) for one in flat}) > 1
    )


def _flat(tree: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """("probe.optimizer.lr", "0.1"), ... of a configuration."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, "null" if tree is None else str(tree)


def findings(run: Run) -> list[str]:
    """What the paired tests of summary.json say, in words that claim no more; of many pairs those
    that differ in the head alone."""
    entries: list[Tree] = list(run.summary.get("comparisons") or ())
    if len(entries) > FEW:
        entries = [e for e in entries if set(e["methods"]) in TWINS]
    tests = {m.name: m.test for m in run.methods}
    found = []
    for entry in entries:
        shares = [
            f"{method_name(name)} {percent(share(tests.get(name), entry['attack']))}"
            for name in entry["methods"]
        ]
        test = entry["test"].replace("over seeds", f"over {len(run.seeds)} seeds")
        found.append(
            f"Robust accuracy under {entry['attack']}: {', '.join(shares)}, a difference of "
            f"{points(entry['difference'])} ({test}: {p_value(entry['p_value'])}). "
            f"{_verdict(entry['p_value'], len(run.summary['seeds']))}"
        )
    return found


def _verdict(p: float | None, seeds: int) -> str:
    shown = p is not None and p < LEVEL
    if seeds == 1:
        told = "these two trained models differ" if shown else "no difference is shown"
        return f"One seed: {told}; other seeds may come out otherwise."
    return "" if shown else "That is no evidence of a difference."


def evaluate(run: Run) -> str:
    """The command that evaluates the run's first model by AutoAttack."""
    place, name = run.folder, "model"
    for method in [m for m in run.methods if m.seeds][:1]:
        place, name = method.folder / f"seed-{method.seeds[0].number}" / method.name, method.name
    model, out = shlex.quote(str(place)), shlex.quote(str(run.folder / "evaluation" / name))
    return f"python -m roli_fast.evaluate --model {model} --out {out}"


def evaluation_cost(run: Run) -> str:
    """What AutoAttack may take on all test images, by the speed of the last stage; empty where
    that cannot be told."""
    speed = values(run.results[-1:], "train_images_per_second")
    stage = run.config.get(run.results[-1]["name"] if speed else "") or run.config.get("finetune")
    steps, images = at(stage, "attack", "steps"), run.summary.get("test_images")
    if not (speed and steps and images):
        return ""
    norm = at(run.config, "threat", "norm")
    attack = AutoAttack(norm=norm if norm in NORMS else "linf")
    passes = attack_passes(attack, len(run.summary.get("classes") or ()) or 10)
    seconds = images * passes / (speed[0] * (UPDATE + 2 * steps))
    return (
        f"An image that resists takes AutoAttack {passes:,} passes: at the speed of training all "
        f"test images take at most {duration(seconds)}. "
    )


def unfitted(page: Page) -> list[str]:
    """Why temperatures were not fitted, every reason once with whom it befell."""
    found: dict[str, list[str]] = {}
    for s in page.subjects:
        for seed, (condition, word) in product(s.method.seeds, CONDITIONS.items()):
            fit = at(seed.analysis, "calibration", condition)
            if fit and not fit.get("fitted"):
                whom = f"{s.label} {word} (seed {seed.number})"
                found.setdefault(str(fit.get("reason")), []).append(whom)
    return [
        f"No temperature was fitted, so T = 1, for {listed(whom)}: {reason}."
        for reason, whom in found.items()
    ]


def warnings(page: Page) -> list[str]:
    """Why numbers of these runs may not be compared."""
    images, pixels = (
        {at(run.environment, "identity", f"data test {kind}") for run in page.runs}
        for kind in ("images", "pixels")
    )
    tested = [run.summary for run in page.runs if run.summary]
    attacks = {repr((s.get("attack"), s.get("threat"))) for s in tested}
    without = [name for name, run in zip(page.names, page.runs, strict=True) if not run.summary]
    found = []
    if len(images) > 1 or len(pixels - {None}) > 1:
        found.append("The runs have not all the same test images: their accuracies do not compare.")
    elif None in images:
        found.append("environment.json does not tell whether the runs have the same test images.")
    if len(attacks) > 1:
        found.append(
            "The runs were tested by different attacks or radii: robust accuracies do not compare."
        )
    if len({tuple(run.seeds) for run in page.runs}) > 1:
        found.append("The runs have different seeds.")
    if without:
        found.append(f"Not finished or not tested: {listed(without)}.")
    return found

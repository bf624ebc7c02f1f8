"""What was run, and on what: the configuration and the machine in words."""

from collections.abc import Iterator
from typing import Any

from roli_fast.report.read import Run, Tree, at
from roli_fast.report.subjects import Page
from roli_fast.report.tables import Table, table
from roli_fast.report.text import NONE, count, listed, radius
from roli_fast.running.folder import CONFIG

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
    data = run.config.get("data") or {}
    name = str(data.get("name", "data"))
    root = str(data.get("root") or "").rstrip("/").rsplit("/", 1)[-1]
    return f"{root} ({name})" if root else name


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


def results(run: Run) -> list[Tree]:
    """Of all stages that finished."""
    return [stage for m in run.methods for seed in m.seeds for stage in seed.stages]


def training_images(run: Run) -> int | None:
    """How many there are; None where a run that draws some more than once cannot tell."""
    projected = ("probe", "finetune", "ranli", "ft")
    last = (results(run) or [{}])[-1]
    images = (last.get("train_images") or 0.5) / max(1, last.get("epochs") or 1)
    known = not any(at(run.config, name, "gradient_projection") for name in projected)
    return int(images) if known and images == int(images) else None


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
    done = [s for s in results(run) if s["name"] == name] or [stage]
    return {
        "stage": title,
        "epochs": str(done[0].get("epochs")),
        "trains": _named(stage.get("tuning"), ("rank", "alpha")),
        "objective": _objective(stage),
        "attack": attack_text(stage.get("attack")),
        "optimiser": _optimizer(stage.get("optimizer") or {}),
        "batch": str(stage.get("batch_size")),
    }


def _objective(stage: Tree) -> str:
    """The adversarial objective on clean images is cross-entropy."""
    told = _named(stage.get("objective"), ("beta", "weight", "label_smoothing"))
    return told if stage.get("attack") else told.replace("adversarial", "cross-entropy", 1)


def _optimizer(optimizer: Tree) -> str:
    name = optimizer.get("name")
    if name == "lbfgs":
        tried = optimizer.get("strengths") or ()
        return f"lbfgs, best of L2 strengths {', '.join(f'{s:g}' for s in tried)}"
    return f"{name}, rate {optimizer.get('lr')}, decay {optimizer.get('weight_decay')}"


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

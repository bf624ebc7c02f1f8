"""What was run, and on what: the configuration and the machine in words."""

from collections.abc import Iterator
from typing import Any

from roli_fast.report.read import Run, Tree, at
from roli_fast.report.subjects import Page
from roli_fast.report.tables import Columns, Table, table
from roli_fast.report.text import NONE, count, listed, radius, whole
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


def _results(run: Run) -> list[Tree]:
    return [stage for m in run.methods for seed in m.seeds for stage in seed.stages]


def data(run: Run) -> str:
    """Where the images are from, their size, and how many there are."""
    given, parts = run.config.get("data") or {}, [data_text(run)]
    if size := given.get("image_size"):
        parts.append(f"images of {size} × {size}")
    projected = ("probe", "finetune", "ranli", "ft")  # these draw images more than once
    known = [at(s, "train_images") for s in _results(run)[-1:]]
    if all(known) and not any(at(run.config, n, "gradient_projection") for n in projected):
        images = known[0] / max(1, _results(run)[-1].get("epochs") or 1) if known else 0.5
        parts += [f"{whole(images)} training images"] if images == int(images) else []
    if run.summary:
        parts.append(count(run.summary["test_images"], "test images"))
    if given.get("max_per_class"):
        parts.append(f"at most {given['max_per_class']} a class")
    if given.get("root"):
        parts.append(f"from {given['root']}")
    return ", ".join(parts)


def model(run: Run) -> str:
    """The architecture, where its weights come from, and how many of them train."""
    given = run.config.get("model") or {}
    if source := run.config.get("source"):
        classes = f" (classes {', '.join(map(str, c))})" if (c := source.get("classes")) else ""
        how = "pretrained robustly" if at(run.config, "pretrain", "attack") else "pretrained"
        start = f"{how} on {source.get('name')}{classes} in this run"
    elif given.get("weights"):
        start = f"weights {given['weights']}"
    else:
        start = "timm's pretrained weights" if given.get("pretrained") else "random weights"
    parts = [str(given.get("name")), start]
    if options := given.get("options"):
        parts.append(", ".join(f"{name} {value}" for name, value in options.items()))
    if sizes := [s["trainable_parameters"] for s in _results(run) if s.get("trainable_parameters")]:
        parts.append(f"up to {whole(max(sizes))} parameters train")
    return "; ".join(parts)


def machine(environment: Tree) -> str:
    """Device, processor, threads and versions."""
    packages = environment.get("packages") or {}
    parts = [str(environment.get("gpu") or environment.get("device"))]
    parts.append(str(environment.get("processor")))
    for name in ("threads", "processes"):
        if environment.get(name):
            parts.append(count(environment[name], name))
    parts += [f"{name} {packages[name]}" for name in ("roli-fast", "torch") if packages.get(name)]
    return ", ".join([*parts, f"Python {environment.get('python')}"])


def stages(run: Run) -> Table:
    """How the stages that ran train, each once; none before one has finished."""
    names = [name for method in run.methods for name in method.stages]
    if run.config.get("source") and names:
        names.insert(0, "pretrain")
    found: Columns = {
        "stage": lambda r: r["title"],
        "epochs": lambda r: str(r["epochs"]),
        "trains": lambda r: _named(r.get("tuning"), ("rank", "alpha")),
        "objective": _objective,
        "attack": lambda r: attack_text(r.get("attack")),
        "optimiser": lambda r: _optimizer(r.get("optimizer") or {}),
        "batch": lambda r: str(r.get("batch_size")),
    }
    return table(found, [row for name in dict.fromkeys(names) if (row := _stage(run, name))])


def _stage(run: Run, name: str) -> Tree | None:
    """The configuration of a stage, with its title; None where there is none."""
    stage, title = run.config.get(name), name
    if stage is None and (other := FOLLOWS.get(name)):
        other = other if run.config.get(other) else "finetune"
        stage, title = run.config.get(other), f"{name} (as {other})"
        if name == "ft" and stage:
            stage = stage | {"attack": None, "objective": {"name": "adversarial"}}
    if not isinstance(stage, dict):
        return None
    done = [s for s in _results(run) if s["name"] == name] or [stage]
    return stage | {"title": title, "epochs": done[0].get("epochs")}


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
    rows = [name for name in names if len({one.get(name) for one in flat}) > 1]
    cells: Columns = {
        name: lambda field, one=one: one.get(field, NONE)
        for name, one in zip(page.names, flat, strict=True)
    }
    return table({"field": str, **cells}, rows)


def _flat(tree: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """("probe.optimizer.lr", "0.1"), ... of a configuration."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, "null" if tree is None else str(tree)

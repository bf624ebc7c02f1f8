"""The part of the page that says what was run, and on what."""

from collections.abc import Iterator
from typing import Any

from roli_fast.report.blocks import Block, Facts, Fold, Section, Table, Text
from roli_fast.report.read import Run, Tree, at
from roli_fast.report.subjects import Page
from roli_fast.report.text import (
    NONE,
    WHAT,
    count,
    listed,
    method_name,
    radius,
    whole,
)

FOLLOWS = {"ranli": "finetune", "ranli_matched": "ranli", "ft": "finetune"}
"""Stages that follow from another where their own field is null."""


HEADS = {
    "default": "the values that timm gives this architecture",
    "small": "normal, standard deviation 0.01",
    "zero": "zero, so that the first update leaves the features where they are",
    "kaiming": "the wide head of the RoLI release",
    "robust-linear": "probed first, as RoLI does",
}
"""How fresh heads begin, by `head_init`."""


def setting(page: Page) -> Section:
    """Data, model, threat, methods and how their stages train."""
    run = page.runs[0]
    sources = [
        page.source(run, name)
        for name in ("config.yaml", "summary.json", "environment.json")
        if (run.folder / name).is_file()
    ]
    blocks: list[Block] = [Facts(_facts(run), sources)]
    rows = [row for name in _stages(run) if (row := _stage(run, name))]
    if rows:
        blocks.append(
            Table(
                "How the stages train.",
                ("stage", "epochs", "trains", "objective", "attack", "optimiser", "batch"),
                rows,
                [page.source(run, "config.yaml")],
                words=(2, 3, 4, 5),
            )
        )
    text = (run.folder / "config.yaml").read_text(encoding="utf-8")
    blocks.append(Fold("The whole configuration (config.yaml)", code=text))
    return Section("setting", "What was run, and on what", blocks, "Setting")


def threats(run: Run) -> list[tuple[str, float]]:
    """(norm, radius) of every norm of the threat."""
    threat = run.config.get("threat") or {}
    norms = [threat.get("norm"), *(threat.get("other_norms") or ())]
    radii = [threat.get("eps"), *(threat.get("other_eps") or ())]
    return [(n, e) for n, e in zip(norms, radii, strict=False) if n is not None]


def data_text(run: Run, *, classes: bool = True) -> str:
    """ "digits, 5 classes"; the folder's name and the kind of folder for images of one's own."""
    data = run.config.get("data") or {}
    name = str(data.get("name", "data"))
    if data.get("root"):
        name = f"{str(data['root']).rstrip('/').rsplit('/', 1)[-1]} ({name})"
    known = (run.summary or {}).get("classes")
    return f"{name}, {count(len(known), 'classes')}" if classes and known else name


def model_text(run: Run) -> str:
    """The architecture and where its weights come from."""
    model = run.config.get("model") or {}
    name = str(model.get("name"))
    if run.config.get("source"):
        source = run.config["source"]
        classes = f" (classes {', '.join(map(str, c))})" if (c := source.get("classes")) else ""
        how = "pretrained robustly" if at(run.config, "pretrain", "attack") else "pretrained"
        start = f"{how} on {source.get('name')}{classes} in this run"
    elif model.get("weights"):
        start = f"weights {model['weights']}"
    else:
        start = "timm's pretrained weights" if model.get("pretrained") else "random weights"
    return f"{name}; {start}"


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


def _facts(run: Run) -> list[tuple[str, str]]:
    summary, config = run.summary or {}, run.config
    facts = [("Methods", "; ".join(_method(m.name) for m in run.methods))]
    facts.append(("Data", _data(run)))
    if classes := summary.get("classes"):
        shown = ", ".join(map(str, classes[:12]))
        facts.append(("Classes", f"{shown}, … ({len(classes)})" if len(classes) > 12 else shown))
    facts.append(("Model", _model(run)))
    radii = listed([radius(n, e) for n, e in threats(run)]) if threats(run) else NONE
    facts.append(("Threat", f"{radii}: how far an attack may change an image"))
    facts.append(("Validation attack", f"{attack_text(config.get('validation'))}; picks the epoch"))
    facts.append(("Test attack", attack_text(config.get("test"))))
    seeds = config.get("seeds") or summary.get("seeds") or ()
    facts.append(("Seeds", ", ".join(map(str, seeds)) or NONE))
    init = config.get("head_init")
    if init and any(m.name != "finetune" for m in run.methods):
        facts.append(("Fresh heads", HEADS.get(init, str(init))))
    if faults := config.get("paper_compat"):
        facts.append(("Faults of the releases reproduced", ", ".join(faults)))
    if run.environment:
        facts.append(("Machine", _machine(run.environment)))
    return facts


def _method(name: str) -> str:
    return f"{method_name(name)}: {WHAT[name]}" if name in WHAT else name


def _data(run: Run) -> str:
    data, parts = run.config.get("data") or {}, [data_text(run, classes=False)]
    if data.get("image_size"):
        parts.append(f"images of {data['image_size']} × {data['image_size']}")
    stages = [stage for method in run.methods for seed in method.seeds for stage in seed.stages]
    projected = any(
        at(run.config, name, "gradient_projection") for name in ("probe", "finetune", "ranli", "ft")
    )
    if stages and not projected and stages[-1].get("train_images"):
        images = stages[-1]["train_images"] / max(1, stages[-1].get("epochs") or 1)
        if images == int(images):
            parts.append(f"{whole(images)} training images")
    if run.summary:
        parts.append(count(run.summary["test_images"], "test images"))
    if data.get("max_per_class"):
        parts.append(f"at most {data['max_per_class']} a class")
    if data.get("root"):
        parts.append(f"from {data['root']}")
    return ", ".join(parts)


def _model(run: Run) -> str:
    sizes = [
        stage["trainable_parameters"]
        for method in run.methods
        for seed in method.seeds
        for stage in seed.stages
        if stage.get("trainable_parameters")
    ]
    text = model_text(run)
    options = at(run.config, "model", "options") or {}
    if options:
        text += "; " + ", ".join(f"{name} {value}" for name, value in options.items())
    if sizes:
        text += f"; up to {whole(max(sizes))} parameters train"
    return text


def _machine(environment: Tree) -> str:
    packages = environment.get("packages") or {}
    device = environment.get("gpu") or environment.get("device")
    parts = [str(device), str(environment.get("processor"))]
    if environment.get("threads"):
        parts.append(count(environment["threads"], "threads"))
    if (environment.get("processes") or 1) > 1:
        parts.append(f"{environment['processes']} processes")
    parts += [f"{name} {packages[name]}" for name in ("roli-fast", "torch") if packages.get(name)]
    return ", ".join([*parts, f"Python {environment.get('python')}"])


def _stages(run: Run) -> Iterator[str]:
    """The stages that ran, each once; before one has finished none."""
    names = [name for method in run.methods for name in method.stage_names]
    if run.config.get("source") and names:
        names.insert(0, "pretrain")
    yield from dict.fromkeys(names)


def _stage(run: Run, name: str) -> list[str] | None:
    """A row of the table of stages; None where the configuration does not have it."""
    stage, note = run.config.get(name), ""
    if stage is None and (other := FOLLOWS.get(name)):
        other = other if run.config.get(other) else "finetune"
        stage, note = run.config.get(other), f" (as {other})"
        if name == "ft" and stage:
            stage = {**stage, "attack": None, "objective": {"name": "adversarial"}}
    if not isinstance(stage, dict):
        return None
    done = [s for m in run.methods for seed in m.seeds for s in seed.stages if s["name"] == name]
    epochs = done[0]["epochs"] if done else stage.get("epochs")
    return [
        name + note,
        str(epochs),
        _named(stage.get("tuning"), ("rank", "alpha")),
        _objective(stage),
        attack_text(stage.get("attack")),
        _optimizer(stage.get("optimizer") or {}),
        str(stage.get("batch_size")),
    ]


def _objective(stage: Tree) -> str:
    """The adversarial objective on clean images is cross-entropy."""
    told = _named(stage.get("objective"), ("beta", "weight", "label_smoothing"))
    clean = not stage.get("attack")
    return told.replace("adversarial", "cross-entropy", 1) if clean else told


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
    told = [f"{f} {part[f]}" for f in fields if part.get(f)]
    return ", ".join([str(part.get("name")), *told])


def note(run: Run) -> list[Block]:
    """The note that whoever started the run gave it."""
    text = run.config.get("note")
    return [Text(f"Note in the configuration: {text}.", strong=True)] if text else []

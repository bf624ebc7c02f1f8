"""The recipes of several norms against numbers typed from RAMP's tables, and what they run."""

from pathlib import Path

import pytest
from tiny_data import write_cifar
from torchvision import datasets

from roli_fast.attacks import APGD, APGDT, MSD, AutoAttack, MultiAPGD
from roli_fast.configuration import read_yaml
from roli_fast.data import DATASETS
from roli_fast.peft import Full
from roli_fast.train import run
from roli_fast.train.cli import parse
from roli_fast.train.eps_schedule import Constant
from roli_fast.train.experiment import SCHEMA, Experiment
from roli_fast.train.gradient_projection import GradientProjection
from roli_fast.train.objectives import AVG, EAT, RAMP, SAT, Adversarial
from roli_fast.train.optim import Schedule, Step, Triangle
from roli_fast.train.recipes import NORM_RECIPES
from roli_fast.train.stage import Stage

PREACT, RN50, XCIT = "preact_resnet18", "resnet50", "xcit_small_12_p16_224"
WRN28, WRN34, WRN70 = (f"wide_resnet{size}_cifar" for size in ("28_10", "34_20", "70_16"))
THIRDS = Step((1 / 3, 2 / 3), factor=0.1)

CELLS: list[tuple[str, str, str, int, float, Schedule, int, float, str, tuple[float, float]]] = [
    # data, start, model, epochs, lr, schedule, batch (script), decay, of, lambda (text, script)
    ("cifar10", "scratch", PREACT, 80, 0.05, Step((7 / 8,)), 128, 5e-4, "matrices", (2, 5)),
    ("cifar10", "scratch", WRN28, 30, 0.1, Triangle(0.4), 128, 5e-4, "matrices", (2, 2)),
    ("cifar10", "finetune", PREACT, 3, 0.05, THIRDS, 128, 5e-4, "all", (0.5, 1.5)),
    ("cifar10", "finetune", RN50, 3, 0.01, THIRDS, 128, 5e-4, "all", (0.5, 1.5)),
    ("cifar10", "finetune", WRN34, 3, 0.01, THIRDS, 128, 5e-4, "all", (0.5, 1.5)),
    ("cifar10", "finetune", WRN28, 3, 0.01, THIRDS, 128, 5e-4, "all", (0.5, 1.5)),
    ("cifar10", "finetune", WRN70, 3, 0.01, THIRDS, 64, 5e-4, "all", (0.5, 1.5)),
    ("image_folder", "finetune", RN50, 1, 0.005, THIRDS, 128, 1e-4, "all", (0.5, 3)),
    ("image_folder", "finetune", XCIT, 1, 1e-4, THIRDS, 64, 1e-4, "all", (0.5, 1.5)),
]

WRITTEN_OUT = """
data: {name: cifar10, root: photos, image_size: 32, augment: true, val_fraction: 0.02}
model: {name: preact_resnet18}
methods: [scratch]
threat: {norm: linf, eps: 8/255, other_norms: [l2, l1], other_eps: [0.5, 12]}
pretrain:
  epochs: 80
  tuning: {name: full}
  objective: {name: ramp, source: linf, target: l1, weight: 5}
  attack: {name: multi_apgd, steps: 10, density: 0.05}
  optimizer: {name: sgd, lr: 0.05, weight_decay: 5e-4, momentum: 0.9}
  schedule: {name: step, milestones: [0.875], factor: 0.1}
  batch_size: 128
  warmup_epochs: 0
  validate_every: 3
  select: last
  gradient_projection: {beta: 0.5, projection: cosine}
validation: {name: apgd, steps: 100}
test: {name: autoattack, version: apgd, steps: 100}
note: "ramp, start scratch, script's settings of arXiv:2402.06827"
"""


def from_recipe(name: str, data: str, *more: str) -> Experiment:
    return parse(["--recipe", name, "--data", data, "--data.root=photos", *more]).experiment


def stage_of(experiment: Experiment) -> Stage:
    (method,) = experiment.methods
    ((_name, stage),) = experiment.stages(method)
    return stage


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join(cell[:3]))
def test_a_cell_is_the_paper_s(cell: tuple) -> None:
    data, start, model, epochs, lr, schedule, batch, decay, of, (text, script) = cell
    flags = [f"--start={start}", f"--model.name={model}"]
    for name in ("ramp", "msd"):
        experiment = from_recipe(name, data, *flags)
        assert type(experiment.data) is DATASETS[data] and experiment.model.name == model
        assert experiment.methods == (start,)
        stage = stage_of(experiment)
        assert (stage.epochs, stage.batch_size, stage.schedule) == (epochs, batch, schedule)
        rule = stage.optimizer
        assert (rule.name, rule.momentum, rule.lr) == ("sgd", 0.9, lr)
        assert (rule.weight_decay, rule.decay) == (decay, of)
        assert (stage.warmup_epochs, stage.eps_schedule, stage.select) == (0, Constant(), "last")
        assert isinstance(stage.tuning, Full)
        projected = GradientProjection(beta=0.5) if (name, start) == ("ramp", "scratch") else None
        assert stage.gradient_projection == projected
    for where, weight in (("script", script), ("text", text)):
        experiment = from_recipe("ramp", data, *flags, f"--published={where}")
        assert stage_of(experiment).objective == RAMP(source="linf", target="l1", weight=weight)
        assert f"{where}'s settings" in experiment.note


def test_the_batch_on_imagenet_differs_too_and_what_is_not_published_is_told() -> None:
    text = from_recipe("msd", "image_folder", "--published=text", "--model.name=vit_tiny")
    assert stage_of(text).batch_size == 64
    assert text.note.endswith("; not published: vit_tiny, settings of resnet50")
    assert "not published: cifar100; tuning lora" in (
        from_recipe("sat", "cifar100", "--tuning=lora").note
    )


@pytest.mark.parametrize(
    ("data", "radii", "steps"),
    [
        ("cifar10", {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}, (10, 10, 10)),
        ("image_folder", {"linf": 4 / 255, "l2": 2.0, "l1": 255.0}, (5, 15, 15)),
    ],
)
def test_radii_and_steps(data: str, radii: dict[str, float], steps: tuple[int, int, int]) -> None:
    """`steps` in linf, in l1, and of MSD, which has one number."""
    for name in NORM_RECIPES:
        experiment = from_recipe(name, data)
        assert {t.norm: t.eps for t in experiment.threat.each} == radii
        attack = stage_of(experiment).attack
        assert attack is not None
        attack = attack.under(experiment.threat)
        assert isinstance(attack, MSD if name == "msd" else MultiAPGD)
        assert dict(zip(attack.norms or (), attack.eps or (), strict=True)) == radii
        assert attack.density == 0.05
        if isinstance(attack, MSD):
            assert attack.steps == steps[2]
        else:
            assert (attack.steps, attack.l1_steps or attack.steps) == steps[:2]


def test_the_objectives() -> None:
    found = {name: stage_of(from_recipe(name, "cifar10")).objective for name in NORM_RECIPES}
    assert found == {
        "ramp": RAMP(source="linf", target="l1", weight=1.5),
        "eat": EAT(norms=("linf", "l1")),
        "max": Adversarial(),
        "msd": Adversarial(),
        "sat": SAT(),
        "avg": AVG(),
    }


def test_the_published_protocol() -> None:
    experiment = from_recipe("eat", "cifar10")
    data = SCHEMA.to_tree(experiment.data)
    assert (data["image_size"], data["augment"]) == (32, True)
    for threat in experiment.threat.each:
        looked = experiment.validation.under(threat)
        assert looked == APGD(norm=threat.norm, eps=threat.eps, steps=100, restarts=1)
        asked = experiment.test.under(threat)
        assert isinstance(asked, AutoAttack)
        assert (asked.norm, asked.eps) == (threat.norm, threat.eps)
        first, second = asked.parts
        assert isinstance(first, APGD) and isinstance(second, APGDT)
        runs = (5, 5) if threat.norm == "l1" else (1, 9)
        assert (first.restarts, second.targets) == runs, "ten runs a norm"
        assert first.steps == second.steps == 100


def test_a_recipe_is_what_it_says_written_out(tmp_path: Path) -> None:
    file = tmp_path / "written.yaml"
    file.write_text(WRITTEN_OUT)
    written = SCHEMA.build(read_yaml(file), [])
    assert from_recipe("ramp", "cifar10", "--start=scratch") == written


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--recipe=rampe", "--data=cifar10"], ["`--recipe`", "roli", "ramp, eat, max", "'rampe'"]),
        (
            ["--recipe=max", "--data=image_folder", "--start=scratch"],
            ["`--start`", "finetune for image_folder", "--model.weights"],
        ),
        (
            ["--recipe=avg", "--data=cifar10", "--start=scratch", "--tuning=lora"],
            ["`--tuning`", "full with --start scratch", "'lora'"],
        ),
        (
            ["--recipe=roli", "--data=cub", "--tuning=full", "--start=scratch"],
            ["`--start`", "--recipe ramp"],
        ),
        (
            ["--recipe=ramp", "--data=cifar10", "--data.root=x", "--finetune.attack=pgd"],
            ["multi_apgd", "ramp"],
        ),
    ],
)
def test_a_wrong_recipe_is_named_with_its_fix(flags: list[str], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        parse(flags)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_recipe_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RAMP from scratch; two classes in CIFAR's format, a narrow network, one update an epoch."""
    root = write_cifar(tmp_path / "cifar", monkeypatch, datasets.CIFAR10)
    flags = [f"--data.root={root}", "--data.val_fraction=0.2", "--device=cpu", "--threads=1"]
    flags += ["--model.options.widths=4,4,8,8", "--model.options.depths=1,1,1,1"]
    flags += ["--model.options.stem_width=4", "--validation.steps=2", "--test=apgd"]
    flags += ["--test.steps=2", "--start=scratch", "--pretrain.epochs=1"]
    experiment = from_recipe("ramp", "cifar10", *flags, "--pretrain.attack.steps=2")
    (scratch,) = run(experiment, tmp_path / "a", quiet=True)["methods"].values()
    assert (
        scratch["stages"][0]["name"] == "pretrain" and 0 <= scratch["test"]["clean_accuracy"] <= 1
    )

"""YAML files and flags become an Experiment, and wrong ones are named."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from roli_fast.attacks import APGDT, MSD, MultiAPGD
from roli_fast.configuration.values import descriptions, field_types
from roli_fast.data import DATASETS
from roli_fast.errors import ConfigError, RoliFastError
from roli_fast.models import Model
from roli_fast.peft import Adapter, Full, Linear, LoRA
from roli_fast.threat import ThreatModel
from roli_fast.train.cli import parse
from roli_fast.train.experiment import COMPONENTS, SCHEMA, Experiment
from roli_fast.train.optim import Optimizer
from roli_fast.train.stage import Stage, pgd_in_run


def test_no_arguments_is_the_quickstart() -> None:
    command = parse([])
    experiment = command.experiment
    assert command.name == "quickstart" and experiment.note == "demo, not evidence"
    assert experiment.methods == ("roli", "ranli") and experiment.source is not None
    assert experiment.threat.eps == 0.08
    assert isinstance(experiment.probe.tuning, Linear)
    assert isinstance(experiment.finetune.tuning, Full)
    assert experiment.stages("ranli")[0][1].epochs == 16, "those of both stages"
    own = parse(["--ranli.epochs", "3"]).experiment
    assert own.stages("ranli")[0][1].epochs == 3
    experiment = parse(["--data", "image_folder", "--data.root", "photos"]).experiment
    assert (experiment.source, experiment.note) == (None, ""), "data leave it behind"
    assert experiment.threat.eps == 8 / 255


@pytest.mark.parametrize(
    ("flags", "eps"),
    [
        (["--threat.norm=linf"], 0.08),
        (["--threat.norm=l2"], 0.5),
        (["--threat.norm=l1", "--data=digits"], 12.0),
        (["--threat.eps=0.25", "--threat.norm=l2"], 0.25),
    ],
)
def test_a_radius_of_another_norm_is_left_behind(flags: list[str], eps: float) -> None:
    """The quickstart has 0.08 in linf, which is next to nothing in l2."""
    assert parse(flags).experiment.threat.eps == eps


def test_a_norm_without_a_radius_in_yaml(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data: digits\nmodel: {name: resnet18}\nthreat: {norm: l2}\n")
    assert parse(["--config", str(file)]).experiment.threat == ThreatModel("l2", 0.5)
    own = ["--validation.norm=l2"]
    with pytest.raises(RoliFastError, match=r"`validation.norm`.*'l2', which has no eps"):
        parse(["--data=digits", *own])
    both = parse(["--data=digits", *own, "--validation.eps=0.25"]).experiment
    assert [a.eps for a in both.evaluations("validation").values()] == [0.25]  # type: ignore


def test_null_attacks_survive_the_saved_file() -> None:
    """LP-FT is RoLI with the attack off; a dump that drops nulls would bring the attack back."""
    command = parse(["--finetune.attack", "null", "--source", "null"])
    again = SCHEMA.build(yaml.safe_load(SCHEMA.to_yaml(command.experiment)), [])
    assert again == command.experiment
    assert again.finetune.attack is None
    assert again.source is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--thret.eps", "1"], ["`thret`", "threat"]),
        (["--data", "imagenet"], ["`data.name`", "image_folder", "'imagenet'"]),
        (["--finetune.epochs", "many"], ["`finetune.epochs`", "an integer", "'many'"]),
        (["--finetune", "3"], ["`finetune`", "'3'", "--finetune.epochs VALUE", "batch_size"]),
        (["--finetune.optimizer.betas", "3"], ["`finetune.optimizer.betas`", "2 values"]),
        (["--data", "image_folder"], ["`data.root`", "--data.root ..."]),
        (["--threat.eps", "-1"], ["`threat.eps`", "8/255"]),
        (["--methods", "roly"], ["`methods`", "roli", "'roly'"]),
        (["--config", "no-such-file.yaml"], ["no-such-file.yaml", "quickstart"]),
        (["--seeds", "1,1"], ["`seeds`"]),
        (["--lr", "1"], ["`lr`", "Did you mean --probe.optimizer.lr, --finetune.optimizer.lr,"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value[0], str) and value[0][0] == "-" else "",
)
def test_a_wrong_flag_is_named_with_its_fix(arguments: list[str], words: list[str]) -> None:
    with pytest.raises(RoliFastError) as caught:
        parse(arguments)
    message = str(caught.value)
    assert all(word in message for word in words), message


def test_a_name_of_one_meaning_may_be_short() -> None:
    experiment = parse(["--finetune.lr=0.25", "--probe.steps=3"]).experiment
    assert experiment.finetune.optimizer.lr == 0.25
    assert experiment.probe.attack.steps == 3  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="unknown field"):
        parse(["--options.depth=3"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: {name: digits}\nfinetune: {epoch: 3}\n", ["`finetune.epoch`", "epochs"]),
        ("data: {name: digits}\nthreat: {eps: big}\n", ["threat.eps", "big"]),
        ("data: [unclosed\n", ["YAML", "line"]),
        ("seeds: [2020-99-99]\ndata: {name: digits}\n", ["`seeds`"]),
        ("data: {name: digits}\nprobe: {epochs: 1}\nprobe: {epochs: 2}\n", ["`probe`", "twice"]),
        ("a: &a [*a]\n", ["c.yaml", "deep"]),
    ],
)
def test_a_wrong_file_is_named_with_its_fix(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        parse(["--config", str(file)])
    message = str(caught.value)
    assert all(word in message for word in words), message


def test_a_date_is_a_text_and_an_alias_its_value(tmp_path: Path) -> None:
    """And what names no component is of the default's class."""
    file = tmp_path / "c.yaml"
    text = "data: {name: digits}\nnote: 2026-01-01\nprobe: {attack: {steps: 5}}\n"
    text += "validation: &a {name: pgd, steps: 3}\ntest: *a\n"
    file.write_text(text, encoding="utf-8-sig")
    experiment = parse(["--config", str(file)]).experiment
    assert experiment.note == "2026-01-01" and experiment.test == experiment.validation
    assert experiment.probe.attack == pgd_in_run(5)


def test_a_component_named_again_and_another(tmp_path: Path) -> None:
    """The same keeps what the file says of it; of another, data keep what both have."""
    file = tmp_path / "c.yaml"
    text = "data: {name: image_folder, root: a, image_size: 9}\n"
    file.write_text(text + "finetune: {tuning: {name: lora, rank: 3}}\n")
    same = parse(["--config", str(file), "--finetune.tuning=lora"]).experiment
    assert same.finetune.tuning == LoRA(rank=3)
    flags = ["--finetune.tuning.dropout=0.5", "--finetune.tuning=adapter", "--data=json_splits"]
    with pytest.raises(ConfigError, match="unknown field `finetune.tuning.dropout`"):
        parse(["--config", str(file), *flags])
    other = parse(["--config", str(file), *flags[1:]]).experiment
    assert other.finetune.tuning == Adapter()
    assert other.data == DATASETS["json_splits"](root="a", image_size=9)  # type: ignore[call-arg]


def told(capsys: pytest.CaptureFixture[str], *asked: str) -> str:
    """What --help prints."""
    with pytest.raises(SystemExit) as caught:
        parse(["--help", *asked])
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_help_is_a_screen_and_tells_of_each_field_that_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = told(capsys)
    assert "--print_config" in first and "finetune" in first and first.count("\n") < 30
    assert "--published NAME" in told(capsys, "recipe") and "--help all" in first
    assert "--finetune.optimizer.lr" in (text := told(capsys, "finetune"))
    assert "[2.5e-05]" in text
    assert "peak learning rate" in told(capsys, "finetune.lr")
    assert "Fields of the attack pgd:" in told(capsys, "pgd")
    assert f"Fields of the {DATASETS.kind} digits:" in told(capsys, "data")
    with pytest.raises(ConfigError, match="`--help`: expected a field or a component"):
        parse(["--help", "nothing"])


def test_help_explains_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    printed = told(capsys, "all")
    for registry in COMPONENTS.values():
        assert all(f"the {registry.kind} {name}:" in printed for name in registry)
    components = [registry[name] for registry in COMPONENTS.values() for name in registry]
    undescribed = [
        f"{kind.__name__}.{name}"
        for kind in (Experiment, Stage, Optimizer, Model, ThreatModel, *components)
        for name in field_types(kind)
        if name not in descriptions(kind)
    ]
    assert undescribed == []


@pytest.mark.parametrize(("name", "kind"), [("multi_apgd", MultiAPGD), ("msd", MSD)])
@pytest.mark.parametrize(
    ("more", "norms", "eps"),
    [
        ([], ("l2", "l1", "linf"), (0.5, 12, 8 / 255)),
        (["--finetune.attack.norms=linf,l1"], ("linf", "l1"), (8 / 255, 12)),
        (
            ["--finetune.attack.norms=linf,l1", "--finetune.attack.eps=4/255,9"],
            ("linf", "l1"),
            (4 / 255, 9),
        ),
    ],
    ids=["all", "some", "own radii"],
)
def test_an_attack_in_several_norms_follows_those_of_the_threat(
    name: str, kind: Any, more: list[str], norms: Any, eps: Any
) -> None:
    threat = ["--threat.norm=l2", "--threat.eps=0.5", "--threat.other_norms=l1,linf"]
    flags = [*threat, "--threat.other_eps=12,8/255", "--finetune.attack", name, *more]
    experiment = parse([*flags, "--finetune.attack.steps=3"]).experiment
    assert experiment.finetune.attack is not None
    found = experiment.finetune.attack.under(experiment.threat)
    assert found == kind(norms=norms, eps=eps, steps=3)


def test_another_attack_brings_its_own_defaults() -> None:
    """PGD's loss ce and its 10 steps are no defaults of APGD-T, which has fields of these names."""
    chosen = parse(["--test", "apgd-t"]).experiment.test
    assert chosen == APGDT(norm=None, eps=None, bounds=None)


def test_one_radius_of_an_attack_in_several_norms(tmp_path: Path) -> None:
    """eps is a number in other attacks: what a flag's text is, its own field says."""
    flags = ["--data=digits", "--finetune.attack=multi_apgd", "--finetune.attack.norms=linf"]
    attack = parse([*flags, "--finetune.attack.eps=8/255"]).experiment.finetune.attack
    assert attack == MultiAPGD(norms=("linf",), eps=(8 / 255,), bounds=None)
    file = tmp_path / "c.yaml"
    file.write_text("data: digits\nfinetune: {attack: {name: multi_apgd, eps: 0.5}}\n")
    with pytest.raises(ConfigError, match=r"`finetune.attack.eps`: .* Of one, write \[0.5"):
        parse(["--config", str(file)])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data.channels=1"], "`model.options.in_chans`: expected 1, as data.channels, got 3"),
        (
            ["--data.channels=1", "--model.options.in_chans=1", "--source=digits"],
            "expected 3, as source.channels, got 1",
        ),
    ],
)
def test_images_and_network_have_as_many_channels(flags: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(["--data=digits", *flags])
    grey = parse(["--data=digits", "--data.channels=1", "--model.options.in_chans=1"]).experiment
    assert grey.data.channels == 1

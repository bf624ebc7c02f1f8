"""Flags and files become an evaluation, and wrong ones are named with their fix."""

from pathlib import Path
from typing import Any

import pytest
import torch
from evaluated_models import SIZE
from tiny_models import SMALL, tiny

from roli_fast import attacks
from roli_fast.attacks import APGDT, ATTACKS, FAB, MSD, PGD, Attack, AutoAttack, MultiAPGD, Square
from roli_fast.configuration.values import descriptions, field_types
from roli_fast.data import DATASETS
from roli_fast.errors import ConfigError, RoliFastError
from roli_fast.evaluate import read_report
from roli_fast.evaluate.__main__ import main
from roli_fast.evaluate.assessment import COMPONENTS, Assessment, Subject
from roli_fast.evaluate.attack_names import attack_tree
from roli_fast.evaluate.cli import parse
from roli_fast.evaluate.driver import run
from roli_fast.models import save_model
from roli_fast.train.cli import parse as parse_train
from roli_fast.train.experiment import SCHEMA as TRAINING

BASE = ["--model=evaluated_models:nearest", "--data=digits", f"--data.image_size={SIZE}"]


@pytest.mark.parametrize(
    ("text", "attack"),
    [
        ("pgd-7", PGD(steps=7)),
        ("autoattack", AutoAttack()),
        ("autoattack-rand", AutoAttack(version="rand")),
        ("square-11@l2=1", Square(norm="l2", eps=1.0, n_queries=11)),
        ("pgd-7@linf=16/255", PGD(norm="linf", eps=16 / 255, steps=7)),
        ("apgd_t", APGDT()),
        ("APGD-T-ce-5-r2", APGDT(loss="ce", steps=5, restarts=2)),
        ("fab-9", FAB(steps=9)),
        ("multi-apgd-5", MultiAPGD(steps=5)),
        ("msd-50", MSD(steps=50)),
        ("transfer-20-ti15-ni", attacks.Transfer(steps=20, kernel=15, nesterov=True)),
        ("transfer-9-si3-vt5", attacks.Transfer(steps=9, scales=3, neighbours=5)),
        ("cw-20-s3", attacks.CW(steps=20, searches=3)),
        ("pgd-kl-4-eot3", PGD(loss="kl", steps=4, eot=3)),
        *((ATTACKS[name]().label, ATTACKS[name]()) for name in ATTACKS.names()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_short_names(text: str, attack: Attack) -> None:
    """Among them every attack's own label."""
    tree = dict(attack_tree(text))
    found = ATTACKS[tree.pop("name")](**tree)
    assert found == attack or found.label == attack.label == text


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("pgd-50-10", "`10` sets `steps`, which is 50"),
        ("autoattack-rand-plus", "`plus` sets `version`"),
        ("fgsm-7", "`7` sets nothing"),
        ("autoattack-7", "`7` sets nothing"),
        ("pgx", "autoattack.*square"),
        ("square@l2", "NAME@NORM=RADIUS.*square@l2=1"),
        ("square@l3=1", "l1, l2, linf"),
        ("pgd-0", "`steps`"),
    ],
)
def test_names_that_are_refused(text: str, setting: str) -> None:
    with pytest.raises(ConfigError, match=f"`attacks`.*{setting}") as caught:
        attack_tree(text)
    assert repr(text) in str(caught.value)


def test_the_command_line_and_its_printed_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*BASE, "--attacks=pgd-3,square-20", "--norm=linf,l2,l1", "--eps=8/255,0.5,12"]
    assessment = parse(flags).assessment
    assert assessment.norm == ("linf", "l2", "l1") and assessment.eps == (8 / 255, 0.5, 12)
    assert [attack.label for attack in assessment.attacks] == ["pgd-3", "square-20"]
    assert main([*flags, "--print_config"]) == 0
    file = tmp_path / "mine.yaml"
    file.write_text(capsys.readouterr().out)
    assert parse(["--config", str(file)]).assessment == assessment
    assert parse(BASE).assessment.eps == (8 / 255,)
    assert parse(BASE).assessment.attacks == (AutoAttack(norm=None, eps=None, bounds=None),)


def test_yaml_takes_short_names_and_whole_components(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "model: evaluated_models:nearest\ndata: digits\neps: [4/255]\n"
        "attacks: [pgd-4, {name: pgd, steps: 5, restarts: 2}]\n"
    )
    own: dict[str, Any] = dict(norm=None, eps=None, step_size=None, bounds=None)
    found = parse(["--config", str(file)]).assessment
    assert found.attacks == (PGD(**own, steps=4), PGD(**own, steps=5, restarts=2))
    assert found.model == Subject("evaluated_models:nearest")
    changed = parse(["--config", str(file), "--attacks=pgd-2"]).assessment.attacks
    assert changed == (PGD(**own, steps=2),)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--norm=linf,l2", "--eps=8/255"], ["`eps`", "1 for 2", "--eps 8/255,0.5,12"]),
        (["--norm=l2"], ["`eps`", "one radius for each norm"]),
        (["--eps=8"], ["`eps`", "8/255"]),
        (["--norm=l3", "--eps=1"], ["`norm`", "linf", "'l3'"]),
        (["--norm=l2,l2", "--eps=1,2"], ["`norm`", "different"]),
        (["--attacks="], ["`attacks`"]),
        (["--attacks=pgd-2@l2=1"], ["`attacks.norm`", "--norm holds"]),
        (["--unseen=square@linf=8"], ["`eps`", "Did you mean 8/255"]),
        (["--unseen=pgd-2,pgd-2"], ["`unseen`", "different", "pgd-2 linf"]),
        (["--unseen=multi_apgd"], ["`unseen`", "one ball", "multi-apgd-10"]),
        (["--unseen=pgd-2", "--union_only=true"], ["`unseen`", "union_only"]),
        (["--attacks=pgd-1,apgd-large"], ["`attacks`: apgd", "large_radius"]),
        (["--data=image_folder", "--data.root=nowhere"], ["data: ", "nowhere"]),
        (["--ood=image_folder", "--ood.root=nowhere"], ["ood: ", "nowhere"]),
        (["--batch_size=0"], ["`batch_size`", ">= 1", "0"]),
        (["--images=9999"], ["`images`", "at most", "9999"]),
        (["--search_dtype=fp8"], ["`search_dtype`", "bfloat16"]),
        (["--batches=3"], ["`batches`", "batch_size"]),
        (["--model.optoins.depth=3"], ["`model.optoins`", "options"]),
        (["--model.resize=8"], ["`model.resize`", "nothing beside"]),
        (["--model=evaluated_models:none"], ["`model`", "no attribute 'none'"]),
        (["--model=no_such_module:f"], ["`model`", "No module named 'no_such_module'"]),
        (["--model=evaluated_models:SIZE"], ["`model`", "'int' object is not callable"]),
        (["--model=evaluated_models:number"], ["`model`", "returns a model", "int"]),
        (["--model=evaluated_models:raising"], ["`model`", "that raised KeyError: 'no su"]),
        (["--model=evaluated_models:pair"], ["`model`", "tuple", "nn.Module"]),
        (["--model=evaluated_models:few"], ["`classes`", "10 classes in data and 5 outputs"]),
        (["--model=evaluated_models:broken"], ["`model`", "NaN for"]),
        (["--model=runs/nothing"], ["`model`", "does not exist", "zoo:NAME"]),
        (["--model=none.safetensors"], ["none.safetensors"]),
        (["--model=resnet19"], ["resnet19", "resnet18"]),
        (["--model=zoo:nothing"], ["nothing"]),
        (["--data.image_size=9"], ["`model`", "(3, 9, 9)", "data.image_size"]),
        (["--device=tpu9"], ["`device`"]),
    ],
    ids=lambda value: " ".join(value) if value[0][:2] == "--" else "",
)
def test_a_mistake_is_named_with_its_fix_and_leaves_no_report(
    tmp_path: Path, more: list[str], words: list[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(RoliFastError) as caught:
        run(parse([*BASE, "--attacks=pgd-1", *more]).assessment, out, quiet=True)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert not (out / "evaluation.json").exists()
    assert "NaN" in message or not out.exists()


def test_what_is_missing_is_told() -> None:
    with pytest.raises(RoliFastError, match="`model`.*zoo:NAME"):
        parse(["--data=digits"])
    with pytest.raises(RoliFastError, match="`data`"):
        parse(["--model=resnet18"])


@pytest.mark.parametrize("norms", [["linf"], ["linf", "l1"]])
@pytest.mark.parametrize(
    ("own", "words"),
    [
        ("norm: l2", r"got 'l2', which has no eps.*square@l2=1"),
        ("eps: 0.5", r"`(norm|eps)`: .*YAML"),
    ],
)
def test_an_unseen_attack_with_half_a_ball_is_refused(
    tmp_path: Path, norms: list[str], own: str, words: str
) -> None:
    """In l2 the 8/255 of linf would be no attack at all."""
    file = tmp_path / "c.yaml"
    file.write_text(f"model: resnet18\ndata: digits\nunseen: [{{name: square, {own}}}]\n")
    eps = ["8/255", "12"][: len(norms)]
    flags = ["--config", str(file), f"--norm={','.join(norms)}", f"--eps={','.join(eps)}"]
    with pytest.raises(ConfigError, match=rf"`unseen`: square-5000: .*{words}"):
        parse(flags)


def test_an_unseen_attack_takes_the_radius_of_a_norm_that_is_evaluated(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: resnet18\ndata: digits\nunseen: [{name: square, norm: l1}]\n")
    found = parse(["--config", str(file), "--norm=linf,l1", "--eps=8/255,12"]).assessment
    assert [(one.norm, one.eps) for one in found.unseen_attacks.values()] == [("l1", 12.0)]


def test_help_explains_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help", "all"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for registry in COMPONENTS.values():
        assert all(f"the {registry.kind} {name}:" in printed for name in registry)
    for kind in (Assessment, Subject):
        assert [name for name in field_types(kind) if name not in descriptions(kind)] == []


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """What a training run with two methods leaves, as far as an evaluation reads it."""
    flags = "--data=digits --data.classes=5,6,7 --data.image_size=8 --threat.eps=0.04".split()
    folder = tmp_path / "run"
    for seed, stage in enumerate(("roli/stage-1-probe", "roli/stage-2-ft", "ranli/stage-1-ranli")):
        where = folder / "seed-0" / stage
        where.mkdir(parents=True)
        model = tiny(num_classes=3, seed=seed)
        save_model(model, where / "best.safetensors", classes=("5", "6", "7"))
        (where / "result.json").write_text("{}")
    (folder / "config.yaml").write_text(TRAINING.to_yaml(parse_train(flags).experiment))
    return folder


def test_of_several_or_unfinished_models_none_is_taken(run_folder: Path, tmp_path: Path) -> None:
    command = parse(["--model", str(run_folder)])
    with pytest.raises(RoliFastError) as caught:
        run(command.assessment, tmp_path / "out", quiet=True)
    message = str(caught.value)
    assert "roli/stage-2-ft/best.safetensors" in message
    assert "ranli/stage-1-ranli/best.safetensors" in message and "probe" not in message
    (run_folder / "seed-0/roli/stage-2-ft/result.json").unlink()
    with pytest.raises(RoliFastError, match="unfinished"):
        run(parse(["--model", str(run_folder / "seed-0/roli")]).assessment, tmp_path / "out")


@pytest.mark.parametrize("part", ["seed-0/roli", "seed-0/roli/stage-2-ft/best.safetensors"])
def test_a_run_brings_its_data_and_its_threat(run_folder: Path, tmp_path: Path, part: str) -> None:
    model = ["--model", str(run_folder / part)]
    command = parse([*model, "--attacks=pgd-2", "--images=30"])
    assert command.assessment.data.classes == (5, 6, 7)  # type: ignore[attr-defined]
    assert (command.assessment.norm, command.assessment.eps) == (("linf",), (0.04,))
    run(command.assessment, tmp_path / "out", quiet=True)
    report = read_report(tmp_path / "out")
    assert report.tree["model"]["file"].endswith("stage-2-ft/best.safetensors")
    assert len(report.ids) == 30 and report.tree["notes"] == []
    own = parse([*model, "--norm=l2", "--eps=1"]).assessment
    assert (own.norm, own.eps) == (("l2",), (1.0,))
    other: Any = parse([*model, "--data.max_per_class=5"]).assessment.data
    assert (other.max_per_class, other.classes) == (5, (5, 6, 7))
    assert parse([*model, "--data=digits"]).assessment.data == DATASETS["digits"]()


@pytest.mark.parametrize("text", ["epochs: 3\n", "a: [\n", "- 1\n", "\xff\x00"])
def test_a_config_of_something_else_is_passed_over(run_folder: Path, text: str) -> None:
    weights = run_folder / "seed-0/roli/stage-2-ft/best.safetensors"
    weights.with_name("config.yaml").write_text(text, encoding="latin-1")
    assert parse(["--model", str(weights)]).assessment.data.classes == (5, 6, 7)  # type: ignore[attr-defined]


def test_a_file_of_others_needs_its_architecture_and_keeps_its_head(tmp_path: Path) -> None:
    model = tiny(num_classes=12)
    torch.save(model.backbone.state_dict(), tmp_path / "w.pth")
    flags = ["--model", str(tmp_path / "w.pth"), *BASE[1:], "--attacks=pgd-1", "--images=20"]
    with pytest.raises(RoliFastError, match=r"`model`.*--model\.name"):
        run(parse(flags).assessment, tmp_path / "out", quiet=True)
    flags += ["--model.name=vit_tiny_patch16_224"]
    options = SMALL["vit_tiny_patch16_224"].items()
    flags += [f"--model.options.{name}={value}" for name, value in options]
    flags += ["--model.mean=0.5,0.5,0.5", "--model.std=0.5,0.5,0.5"]
    with pytest.raises(RoliFastError, match="10 classes in data and 12 outputs"):
        run(parse(flags).assessment, tmp_path / "out", quiet=True)
    flags += ["--classes=0,1,2,3,4,5,6,7,8,9"]
    run(parse(flags).assessment, tmp_path / "out", quiet=True)
    report = read_report(tmp_path / "out")
    assert any("0, 1, 2, 3, 4, 5, 6, 7, 8, 9 of 12" in note for note in report.tree["notes"])
    data = parse(flags).assessment.data.load().test.plain()
    x, y, _ = data.batch(torch.tensor([data.ids.tolist().index(i) for i in report.ids.tolist()]))
    model.normalize.mean.fill_(0.5)
    model.normalize.std.fill_(0.5)
    with torch.no_grad():
        assert torch.equal(report.clean, model.eval()(x).argmax(1) == y)

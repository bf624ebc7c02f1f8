"""Flags and files become an evaluation, and wrong ones are named with their fix."""

from pathlib import Path
from typing import Any

import evaluated_models
import pytest
import torch
from evaluated_models import SIZE
from tiny_models import SMALL, tiny

from roli_fast import attacks
from roli_fast.attacks import APGDT, PGD, Attack, AutoAttack, MultiAPGD, Square
from roli_fast.configuration.values import descriptions, field_types
from roli_fast.data import DATASETS
from roli_fast.data.corruptions import CORRUPTIONS
from roli_fast.errors import ConfigError, RoliFastError
from roli_fast.evaluate import read_report
from roli_fast.evaluate.__main__ import main, parse
from roli_fast.evaluate.config import (
    COMPONENTS,
    SEARCHES,
    EvaluationConfig,
    ModelSource,
    attack_tree,
)
from roli_fast.evaluate.run import run
from roli_fast.models import save_model
from roli_fast.models.weights import fingerprint
from roli_fast.train.cli import parse as parse_train
from roli_fast.train.experiment import SCHEMA as TRAINING

BASE = ["--model=evaluated_models:nearest", "--data=digits", f"--data.image_size={SIZE}"]


@pytest.mark.parametrize(
    ("text", "attack"),
    [
        ("pgd-7", PGD(steps=7)),
        ("autoattack-rand", AutoAttack(version="rand")),
        ("square-11@l2=1", Square(norm="l2", eps=1.0, n_queries=11)),
        ("APGD-T-ce-5-r2", APGDT(loss="ce", steps=5, restarts=2)),
        ("multi-apgd-5", MultiAPGD(steps=5)),
        ("transfer-20-ti15-ni", attacks.Transfer(steps=20, kernel=15, nesterov=True)),
        ("cw-20-s3", attacks.CW(steps=20, searches=3)),
        ("pgd-kl-4-eot3", PGD(loss="kl", steps=4, eot=3)),
        *((SEARCHES[name]().label, SEARCHES[name]()) for name in SEARCHES.names()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_short_names(text: str, attack: Attack) -> None:
    """Among them every attack's own label."""
    tree = dict(attack_tree(text))
    found = SEARCHES[tree.pop("name")](**tree)
    assert found == attack or found.label == attack.label == text


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("pgd-50-10", "`10` sets `steps`, which is 50"),
        ("autoattack-rand-plus", "`plus` sets `version`"),
        ("fgsm-7", "`7` sets nothing"),
        ("pgx", "autoattack.*square"),
        ("square@l3=1", "l1, l2, linf"),
        ("square@l2", "NAME@NORM=RADIUS.*square@l2=1"),
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
    assessment = parse(flags).config
    assert assessment.norm == ("linf", "l2", "l1") and assessment.eps == (8 / 255, 0.5, 12)
    assert [attack.label for attack in assessment.attacks] == ["pgd-3", "square-20"]
    assert main([*flags, "--print_config"]) == 0
    file = tmp_path / "mine.yaml"
    file.write_text(capsys.readouterr().out)
    assert parse(["--config", str(file)]).config == assessment
    assert parse(BASE).config.eps == (8 / 255,)
    assert parse(BASE).config.attacks == (AutoAttack(norm=None, eps=None, bounds=None),)


def test_yaml_takes_short_names_and_whole_components(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "model: evaluated_models:nearest\ndata: digits\neps: [4/255]\n"
        "attacks: [pgd-4, {name: pgd, steps: 5, restarts: 2}]\n"
    )
    own: dict[str, Any] = dict(norm=None, eps=None, step_size=None, bounds=None)
    found = parse(["--config", str(file)]).config
    assert found.attacks == (PGD(**own, steps=4), PGD(**own, steps=5, restarts=2))
    assert found.model == ModelSource("evaluated_models:nearest")
    changed = parse(["--config", str(file), "--attacks=pgd-2"]).config.attacks
    assert changed == (PGD(**own, steps=2),)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--norm=linf,l2", "--eps=8/255"], ["`eps`", "1 for 2", "--eps 8/255,0.5,12"]),
        (["--norm=l3", "--eps=1"], ["`norm`", "linf", "'l3'"]),
        (["--attacks=pgd-2@l2=1"], ["`attacks.norm`", "--norm holds"]),
        (["--attacks=fog-3"], ["`attacks`", "in a ball", "--unseen fog-3"]),
        (["--unseen=pgd-2,pgd-2"], ["`unseen`", "different", "pgd-2 linf"]),
        (["--unseen=pgd-2", "--union_only=true"], ["`unseen`", "union_only"]),
        (["--attacks=pgd-1,apgd-large"], ["`attacks`: apgd", "large_radius"]),
        (["--data=image_folder", "--data.root=nowhere"], ["data: ", "nowhere"]),
        (["--batch_size=0"], ["`batch_size`", ">= 1", "0"]),
        (["--curve=0.2,0.1"], ["`curve`", "ascending"]),
        (["--unseen=multi_apgd"], ["`unseen`", "one ball", "multi-apgd-10"]),
        (["--images=9999"], ["`images`", "at most", "9999"]),
        (["--model.resize=8"], ["`model.resize`", "nothing beside"]),
        (["--model=evaluated_models:none"], ["`model`", "no attribute 'none'"]),
        (["--model=evaluated_models:Pair"], ["`model`", "tuple", "nn.Module"]),
        (["--model=evaluated_models:Few"], ["`classes`", "10 classes in data and 5 outputs"]),
        (["--model=evaluated_models:Broken"], ["`model`", "NaN for"]),
        (["--model=runs/nothing"], ["`model`", "does not exist", "zoo:NAME"]),
        (["--data.image_size=9"], ["`model`", "(3, 9, 9)", "data.image_size"]),
        (["--curve=0.1", "--norm=linf,l2", "--eps=8/255,0.5"], ["`curve`", "one norm"]),
        (["--corruptions=rain"], ["`corruptions`", "fog"]),
    ],
    ids=lambda value: " ".join(value) if value[0][:2] == "--" else "",
)
def test_a_mistake_is_named_with_its_fix_and_leaves_no_report(
    tmp_path: Path, more: list[str], words: list[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(RoliFastError) as caught:
        run(parse([*BASE, "--attacks=pgd-1", *more]).config, out, quiet=True)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert not (out / "evaluation.json").exists()
    assert "NaN" in message or not out.exists()


def test_what_is_missing_is_told() -> None:
    for flags, words in ((["--data=digits"], "`model`.*zoo"), (["--model=resnet18"], "`data`")):
        with pytest.raises(RoliFastError, match=words):
            parse(flags)


def test_an_unseen_attack_needs_a_whole_ball_or_a_norm_that_is_evaluated(tmp_path: Path) -> None:
    """In l2 the 8/255 of linf would be no attack at all."""
    file = tmp_path / "c.yaml"
    flags = ["--config", str(file), "--norm=linf,l1", "--eps=8/255,12"]
    text = "model: resnet18\ndata: digits\nunseen: [{name: square, %s}]\n"
    for own, words in (
        ("norm: l2", r"got 'l2', which has no eps.*square@l2=1"),
        ("eps: 0.5", r"`(norm|eps)`: .*YAML"),
    ):
        file.write_text(text % own)
        with pytest.raises(ConfigError, match=rf"`unseen`: square-5000: .*{words}"):
            parse(flags)
    file.write_text(text % "norm: l1")
    found = parse(flags).config.unseen_attacks
    assert [(one.norm, one.eps) for one in found.values()] == [("l1", 12.0)]


def test_help_explains_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help", "all"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for registry in COMPONENTS.values():
        assert all(f"the {registry.kind} {name}:" in printed for name in registry)
    assert parse([*BASE, "--corruptions=all"]).config.corruptions == CORRUPTIONS.names()
    for kind in (EvaluationConfig, ModelSource):
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
        run(command.config, tmp_path / "out", quiet=True)
    message = str(caught.value)
    assert "roli/stage-2-ft/best.safetensors" in message
    assert "ranli/stage-1-ranli/best.safetensors" in message and "probe" not in message
    (run_folder / "seed-0/roli/stage-2-ft/result.json").unlink()
    with pytest.raises(RoliFastError, match="unfinished"):
        run(parse(["--model", str(run_folder / "seed-0/roli")]).config, tmp_path / "out")


@pytest.mark.parametrize("part", ["seed-0/roli", "seed-0/roli/stage-2-ft/best.safetensors"])
def test_a_run_brings_its_data_and_its_threat(run_folder: Path, tmp_path: Path, part: str) -> None:
    model = ["--model", str(run_folder / part)]
    command = parse([*model, "--attacks=pgd-2", "--images=30"])
    assert command.config.data.classes == (5, 6, 7)  # type: ignore[attr-defined]
    assert (command.config.norm, command.config.eps) == (("linf",), (0.04,))
    run(command.config, tmp_path / "out", quiet=True)
    report = read_report(tmp_path / "out")
    assert report.tree["model"]["file"].endswith("stage-2-ft/best.safetensors")
    assert len(report.ids) == 30 and report.tree["notes"] == []
    own = parse([*model, "--norm=l2", "--eps=1"]).config
    assert (own.norm, own.eps) == (("l2",), (1.0,))
    other: Any = parse([*model, "--data.max_per_class=5"]).config.data
    assert (other.max_per_class, other.classes) == (5, (5, 6, 7))
    assert parse([*model, "--data=digits"]).config.data == DATASETS["digits"]()
    (run_folder / "seed-0/roli/stage-2-ft/config.yaml").write_text("epochs: 3\n")  # of another
    assert parse(model).config.data == command.config.data


def test_a_file_of_others_needs_its_architecture_and_keeps_its_head(tmp_path: Path) -> None:
    model = tiny(num_classes=12)
    torch.save(model.backbone.state_dict(), tmp_path / "w.pth")
    flags = ["--model", str(tmp_path / "w.pth"), *BASE[1:], "--attacks=pgd-1", "--images=20"]
    with pytest.raises(RoliFastError, match=r"`model`.*--model\.name"):
        run(parse(flags).config, tmp_path / "out", quiet=True)
    flags += ["--model.name=vit_tiny_patch16_224"]
    options = SMALL["vit_tiny_patch16_224"].items()
    flags += [f"--model.options.{name}={value}" for name, value in options]
    flags += ["--model.mean=0.5,0.5,0.5", "--model.std=0.5,0.5,0.5"]
    with pytest.raises(RoliFastError, match="10 classes in data and 12 outputs"):
        run(parse(flags).config, tmp_path / "out", quiet=True)
    flags += ["--classes=0,1,2,3,4,5,6,7,8,9"]
    run(parse(flags).config, tmp_path / "out", quiet=True)
    report = read_report(tmp_path / "out")
    assert any("0, 1, 2, 3, 4, 5, 6, 7, 8, 9 of 12" in note for note in report.tree["notes"])
    data = parse(flags).config.data.load().test.plain()
    x, y, _ = data.batch(torch.tensor([data.ids.tolist().index(i) for i in report.ids.tolist()]))
    model.normalize.mean.fill_(0.5)
    model.normalize.std.fill_(0.5)
    with torch.no_grad():
        assert torch.equal(report.clean, model.eval()(x).argmax(1) == y)


SHORT = "--attacks square-10 --eps 0.06 --images 20".split()


@pytest.mark.filterwarnings("ignore:quantized:UserWarning")  # torch's, of a gradient that it lacks
@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("quantised", "only searches without gradients can attack it"),
        ("frozen", "the model is a frozen script: whether it changed cannot be told"),
        ("Extra", "gave a model in train mode"),
    ],
)
def test_a_search_without_gradients(tmp_path: Path, name: str, note: str) -> None:
    flags = ["--model", f"evaluated_models:{name}", *BASE[1:], *SHORT]
    report = run(parse(flags).config, tmp_path / "out", resume=False, quiet=True)
    assert report is not None and 0.5 < report["norms"]["linf"]["robust"]["accuracy"] <= 1
    assert note in str(report)


def test_fingerprints_tell_models_and_values_apart() -> None:
    one, same, other = (evaluated_models.quantised() for _ in range(3))
    weight = other.head.weight().dequantize()
    other.head.set_weight_bias(torch.quantize_per_tensor(-weight, 0.1, 0, torch.qint8), None)
    found = [fingerprint(model.state_dict()) for model in (one, same, other)]
    assert found[0] == found[1] != found[2]

    def of(**extra: object) -> str:
        return fingerprint({"weight": torch.ones(2), "_extra_state": extra})

    assert of(steps=[1, 2]) == of(steps=[1, 2]) != of(steps=[1, 3])
    assert of(a=None) != of(b=None)

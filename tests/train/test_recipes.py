"""The published settings against numbers typed from the paper's tables, and what they run."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from roli_fast.attacks import PGD
from roli_fast.configuration import read_yaml
from roli_fast.data import DATASETS
from roli_fast.errors import ConfigError
from roli_fast.peft import Adapter, Bias, Full, Linear, LoRA, Prompt
from roli_fast.train.cli import parse
from roli_fast.train.experiment import SCHEMA, Experiment
from roli_fast.train.objectives import TWINS, AutoLoRa, Objective
from roli_fast.train.optim import Auto
from roli_fast.train.recipes import DATA, NAMES, TUNINGS, table
from roli_fast.zoo import named

CELLS = [
    # data, tuning, init, optimizer, BASE_LR / 4, weight decay, epochs
    ("cifar10", "linear", "ranli", "sgd", 0.0125, 0.01, 20),
    ("cifar10", "adapter", "ranli", "adamw", 0.0125, 0.01, 20),
    ("cifar100", "bias", "roli", "adamw", 1.25e-3, 0.01, 20),
    ("cifar100", "lora", "ranli", "adamw", 0.0125, 0.0, 20),
    ("caltech256", "linear", "ranli", "sgd", 0.125, 0.01, 40),
    ("caltech256", "lora", "roli", "adamw", 2.5e-5, 1e-4, 40),
    ("cub", "linear", "ranli", "sgd", 0.25, 0.001, 60),
    ("cub", "bias", "roli", "adamw", 1.25e-4, 1e-4, 60),
    ("stanford_dogs", "linear", "ranli", "sgd", 0.25, 0.01, 40),
    ("stanford_dogs", "adapter", "roli", "adamw", 2.5e-5, 1e-4, 40),
]

WRITTEN_OUT = """
data: {name: caltech256, root: photos, image_size: 224}
model: {name: swin_base_patch4_window7_224, weights: "zoo:ares_swin_b",
        options: {drop_path_rate: 0.5}}
methods: [roli]
threat: {norm: linf, eps: 8/255}
probe:
  epochs: 40
  tuning: {name: linear}
  attack: {name: pgd, steps: 7, random_start: true}
  optimizer: {name: sgd, lr: 0.125, weight_decay: 0.01, momentum: 0.9}
  batch_size: 64
  warmup_epochs: 10
finetune:
  epochs: 40
  tuning: {name: lora, rank: 16, alpha: 16.0, dropout: 0.1, targets: [q, v]}
  attack: {name: pgd, steps: 7, random_start: true}
  optimizer: {name: adamw, lr: 2.5e-5, weight_decay: 1e-4, betas: [0.9, 0.999], eps: 1e-6}
  batch_size: 64
  warmup_epochs: 10
ranli:
  epochs: 40
  tuning: {name: lora, rank: 16, alpha: 16.0, dropout: 0.1, targets: [q, v]}
  attack: {name: pgd, steps: 7, random_start: true}
  optimizer: {name: adamw, lr: 2.5e-4, weight_decay: 1e-4, betas: [0.9, 0.999], eps: 1e-6}
  batch_size: 64
  warmup_epochs: 10
validation: {name: pgd, steps: 10}
test: {name: pgd, steps: 10}
"""


def from_recipe(name: str, data: str, tuning: str, *more: str) -> Experiment:
    flags = ["--recipe", name, "--data", data, "--tuning", tuning, "--data.root=photos", *more]
    return parse(flags).experiment


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join(cell[:3]))
def test_a_cell_is_the_paper_s(cell: tuple[str, str, str, str, float, float, int]) -> None:
    data, tuning, init, optimizer, lr, decay, epochs = cell
    stage = from_recipe(init, data, tuning).stages(init)[-1][1]
    rule = stage.optimizer
    assert (rule.name, rule.lr, rule.weight_decay) == (optimizer, lr, decay)
    assert (stage.epochs, stage.batch_size) == (epochs, 64)


def column(data: str, field: str) -> list[float]:
    """A column of the table of one data set."""
    return [c[field] for inits in table(data)["settings"].values() for c in inits.values()]


def test_sums_over_the_table() -> None:
    """A slip of a digit anywhere shows in a column's sum, added up from the paper's table."""
    assert {data: round(sum(column(data, "base_lr")), 9) for data in DATA} == {
        "cifar10": 0.6716,  # .05 + 5e-4 + 1e-4 + 5e-3 + 5e-3 + .01 + 1e-3 + .05 + .05 + .5
        "cifar100": 0.7166,  # .1 + 5e-4 + 1e-4 + 5e-3 + 5e-3 + .05 + 1e-3 + 5e-3 + .05 + .5
        "caltech256": 0.55821,  # .5 + 5e-4 + 1e-4 + 1e-3 + 1e-5 + 1e-3 + 1e-4 + 5e-3 + 5e-4 + .05
        "cub": 1.1661,  # 1 + 5e-4 + 1e-4 + 5e-3 + 5e-4 + 5e-3 + 5e-3 + .05 + .05 + .05
        "stanford_dogs": 1.0628,  # 1+5e-4+5e-5+1e-3+5e-5+5e-3+1e-3+5e-3 + twice 1e-4 + .05
    }
    assert {data: round(sum(column(data, "weight_decay")), 9) for data in DATA} == {
        "cifar10": 0.0532,  # five times .01, three times .001, twice 1e-4
        "cifar100": 0.0243,  # twice .01, four times .001, three times 1e-4, one 0
        "caltech256": 0.0215,  # twice .01, one .001, five times 1e-4, two 0
        "cub": 0.0154,  # one .01, five times .001, four times 1e-4
        "stanford_dogs": 0.0317,  # three times .01, one .001, seven times 1e-4
    }


def test_tokens_and_options() -> None:
    tunings = {t: from_recipe("ranli", "cub", t).stages("ranli")[0][1].tuning for t in TUNINGS}
    assert tunings == {
        "linear": Linear(),
        "full": Full(),
        "bias": Bias(),
        "lora": LoRA(rank=16, alpha=16, dropout=0.1, targets=("q", "v")),
        "adapter": Adapter(reduction=8),
        "prompt": Prompt(tokens=20, deep=True, dropout=0.1, pooled=True),
    }
    others = [from_recipe("ranli", d, "prompt").stages("ranli")[0][1] for d in {*DATA} - {"cub"}]
    assert {stage.tuning.tokens for stage in others} == {10}  # type: ignore[attr-defined]


def test_a_recipe_is_what_it_says_written_out(tmp_path: Path) -> None:
    file = tmp_path / "written.yaml"
    file.write_text(WRITTEN_OUT)
    assert from_recipe("roli", "caltech256", "lora") == SCHEMA.build(read_yaml(file), [])


def test_every_setting_builds() -> None:
    for data, tuning in product(DATA, TUNINGS):
        name = "ranli" if tuning in ("linear", "prompt") else "compare"
        experiment = from_recipe(name, data, tuning)
        assert experiment.methods == NAMES[name]
        assert type(experiment.data) is DATASETS[data]
        for _, stage in (pair for m in experiment.methods for pair in experiment.stages(m)):
            assert (stage.batch_size, stage.warmup_epochs) == (64, 10)
            attack = stage.attack and stage.attack.under(experiment.threat)
            assert isinstance(attack, PGD)
            assert (attack.eps, attack.steps, attack.random_start) == (8 / 255, 7, True)
            assert attack.step_size is None and 8 / 255 / 4 == 2 / 255, "null is eps / 4"


def test_data_and_weights_are_the_paper_s() -> None:
    cifar = from_recipe("ranli", "cifar100", "full")
    assert (cifar.data.image_size, cifar.data.augment, cifar.model.resize) == (32, False, 224)
    birds = from_recipe("ranli", "cub", "full")
    assert (birds.data.image_size, birds.data.augment, birds.model.resize) == (224, True, None)
    entry = named(str(birds.model.weights))
    assert entry is not None and entry.architecture == birds.model.name and "ARES" in entry.file


def test_the_budget_matched_control() -> None:
    """CUB: RoLI trains 60 + 60 epochs, RanLI 60, matched 120 at RanLI's rate."""
    experiment = from_recipe("compare", "cub", "bias")
    epochs = {m: [s.epochs for _, s in experiment.stages(m)] for m in experiment.methods}
    assert epochs == {"roli": [60, 60], "ranli": [60], "ranli_matched": [120]}
    rates = {m: experiment.stages(m)[-1][1].optimizer.lr for m in experiment.methods}
    assert rates == {"roli": 1.25e-4, "ranli": 1.25e-3, "ranli_matched": 1.25e-3}


def test_the_clean_recipes() -> None:
    """Both clean fine-tunes have the rate of RoLI's second stage, 10 times below RanLI's."""
    experiment = from_recipe("lp_ft_compare", "cub", "bias")
    found = {
        m: [(n, s.attack is None, s.epochs, s.optimizer.name, s.optimizer.lr) for n, s in stages]
        for m, stages in ((m, experiment.stages(m)) for m in experiment.methods)
    }
    fine = ("ft", True, 60, "adamw", 1.25e-4)
    probe = ("lp", True, 1, "lbfgs", 1e-3)
    assert found["ft"] == [fine]
    assert found["lp_ft"] == [probe, fine]

    alone = from_recipe("lp_ft", "cub", "prompt", "--finetune.epochs=30", "--lp.batch_size=8")
    assert [s.epochs for _, s in alone.stages("lp_ft")] == [1, 30]
    assert alone.methods == ("lp", "ft", "lp_ft")
    with pytest.raises(ConfigError, match="`--probe.epochs` changes nothing"):
        from_recipe("lp_ft", "cub", "full", "--probe.epochs=30")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--recipe=roly", "--data=cub"], ["`--recipe`", "roli, roli_fast, ranli", "'roly'"]),
        (["--recipe=roli", "--data=digits", "--tuning=full"], ["`--data`", "cub", "'digits'"]),
        (["--recipe=roli", "--data=cub"], ["`--tuning`", "lora", "nothing"]),
        (["--tuning=full"], ["`--tuning`", "--recipe", "--finetune.tuning"]),
        (["--recipe=roli", "--config=quickstart"], ["`--config`", "--print_config"]),
        (["--recipe=compare", "--data=cub", "--tuning=prompt"], ["full, bias, lora, adapter"]),
        (
            ["--recipe=ranli", "--data=cub", "--data.root=x", "--tuning=full", "--probe.epochs=30"],
            ["`--probe.epochs`", "changes nothing", "--ranli"],
        ),
    ],
)
def test_a_wrong_recipe_is_named_with_its_fix(flags: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(flags)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "objective", "lr", "decay"),
    [
        ("twins", "cifar10", TWINS(frozen_weight=1.0), 0.003, 1e-5),
        ("twins", "cub", TWINS(frozen_weight=0.4), 0.003, 1e-3),
        ("twins_trades", "caltech256", TWINS(0.4, beta=6.0, kl_mean="batch"), 0.003, 1e-3),
        ("autolora", "stanford_dogs", AutoLoRa(), 0.01, 1e-4),
    ],
)
def test_other_methods_beside_the_plain_fine_tune(
    name: str, data: str, objective: Objective, lr: float, decay: float
) -> None:
    given = ["--recipe", name, "--data", data, "--data.root=photos", "--methods=roli,ranli"]
    experiment = parse(given).experiment
    stage, plain = experiment.stages("ranli")[0][1], experiment.finetune
    rule = stage.optimizer
    assert (rule.name, rule.lr, rule.weight_decay, rule.decay) == ("sgd", lr, decay, "all")
    assert (stage.objective, stage.batch_size, stage.epochs) == (objective, 128, 60)
    assert isinstance(stage.attack, PGD) and stage.attack.steps == 10
    assert replace(stage, objective=plain.objective) == plain != stage
    assert ("for caltech256" in experiment.note) == (data == "cub")
    if name == "autolora":
        assert stage.schedule == Auto()
    else:
        found = [stage.lr_factor(epoch, steps=1) for epoch in (29, 30, 49, 50)]
        assert found == pytest.approx([1, 0.1, 0.1, 0.01])
    with pytest.raises(ConfigError, match="--tuning"):
        parse([*given, "--tuning=lora"])

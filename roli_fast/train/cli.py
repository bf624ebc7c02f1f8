"""The command line of `python -m roli_fast.train`, and the text of its `--help`."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roli_fast.configuration import check_arguments, find_config, pairs, read_yaml
from roli_fast.configuration.usage import Usage, line
from roli_fast.errors import ConfigError, describe
from roli_fast.running.folder import CONFIG
from roli_fast.train.experiment import PLACE_FIELDS, SCHEMA, STAGES, Experiment, same_experiment
from roli_fast.train.paper_compat import FAULTS, RAMP_FAULTS
from roli_fast.train.recipes import (
    NAMES,
    NORM_RECIPES,
    RIVALS,
    norm_recipe,
    recipe,
    rival_recipe,
)
from roli_fast.train.stage import Stage
from roli_fast.train.sweep import Axis, saved_axes


@dataclass(frozen=True)
class Command:
    """What the command line asks for."""

    experiment: Experiment
    run_dir: Path | None
    resume: bool
    print_config: bool
    name: str
    axes: tuple[Axis, ...] = ()


def parse(arguments: Sequence[str]) -> Command:
    """Read the command line.

    Raises:
        ConfigError: an unknown or ill-typed field, named.
        SystemExit: after --help.
    """
    check_arguments(arguments)
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--config")
    own.add_argument("--recipe")
    own.add_argument("--tuning")
    own.add_argument("--start")
    own.add_argument("--published")
    own.add_argument("--sweep", action="append", default=[])
    own.add_argument("--run_dir", type=Path)
    own.add_argument("--resume", action="store_true")
    own.add_argument("--print_config", action="store_true")
    own.add_argument("-h", "--help", nargs="?", const="")
    options, overrides = own.parse_known_args(list(arguments))
    if options.help is not None:
        print(help_text(options.help))
        raise SystemExit(0)
    if options.resume:
        return _resumed(options, overrides)
    name, tree = _starting_tree(options, overrides)
    experiment = SCHEMA.build(tree, overrides)
    if options.recipe:
        _check_reached(experiment, overrides)
    axes = tuple(Axis.parse(text) for text in options.sweep)
    name, shown = name or experiment.model.name, options.print_config
    return Command(experiment, options.run_dir, False, shown, name, axes)


def _starting_tree(
    options: argparse.Namespace, overrides: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    """A name for the run, and the configuration that the overrides change."""
    data, name, tuning = _given(overrides, "data") or "", options.recipe, options.tuning or ""
    if name and options.config:
        fix = "Write the recipe to a file with --print_config and change that."
        raise ConfigError(describe("--config", "nothing beside --recipe", options.config, fix))
    if name in NORM_RECIPES:
        start, model = options.start or "finetune", _given(overrides, "model.name")
        choice = {"data": data, "start": start, "model": model, "tuning": tuning}
        tree = norm_recipe(name, **choice, where=options.published or "script")
        return "-".join(filter(None, (name, data, start, tuning))), tree
    for flag in ("start", "published"):
        if given := getattr(options, flag):
            expected = f"--recipe {', '.join(NORM_RECIPES)} beside it"
            raise ConfigError(describe(f"--{flag}", expected, given))
    if name in RIVALS:
        return f"{name}-{data}", rival_recipe(name, data=data, tuning=tuning)
    if name in NAMES:
        return f"{name}-{data}-{tuning}", recipe(name, data=data, tuning=tuning)
    if name:
        known = f"one of: {', '.join((*NAMES, *NORM_RECIPES, *RIVALS))}"
        raise ConfigError(describe("--recipe", known, repr(name)))
    if tuning:
        fix = "Elsewhere set --finetune.tuning."
        raise ConfigError(describe("--tuning", "a --recipe beside it", tuning, fix))
    file = options.config or ("" if data else "quickstart")
    return Path(file).stem, read_yaml(find_config(file)) if file else {}


def _given(overrides: Sequence[str], field: str) -> str | None:
    """The value that the overrides give `field` itself."""
    return next(
        (text for flag, text in reversed([*pairs(overrides)]) if flag == f"--{field}"), None
    )


def _check_reached(experiment: Experiment, overrides: Sequence[str]) -> None:
    """A flag for a stage that no method runs would be a wish without effect."""
    runs = {name for method in experiment.methods for name in experiment.read_stages(method)}
    for flag, _text in pairs(overrides):
        stage = flag.removeprefix("--").partition(".")[0]
        if stage in STAGES and stage not in runs:
            raise ConfigError(
                f"`{flag}` changes nothing: {', '.join(experiment.methods)} runs "
                f"{', '.join(sorted(runs))}. Write --{sorted(runs)[-1]}..., or choose --methods."
            )


def _resumed(options: argparse.Namespace, overrides: Sequence[str]) -> Command:
    if options.run_dir is None:
        raise ConfigError("`--resume` continues the run in `--run_dir DIR`: name that folder.")
    saved = options.run_dir / CONFIG
    if not saved.is_file():
        raise ConfigError(
            f"`--run_dir`: expected a folder with a {CONFIG} to resume, got "
            f"'{options.run_dir}'. Leave out --resume to start a new run there."
        )
    before, axes = SCHEMA.read(saved), saved_axes(options.run_dir)
    tree = read_yaml(find_config(options.config)) if options.config else read_yaml(saved)
    experiment = SCHEMA.build(tree, overrides)
    other_sweep = options.sweep and tuple(map(Axis.parse, options.sweep)) != axes
    if other_sweep or not same_experiment(before, experiment):
        raise ConfigError(
            "`--resume` continues with the saved configuration: leave out "
            f"{' '.join(overrides) or '--config and --sweep'}, or start a new run_dir with it. "
            f"Only {', '.join(PLACE_FIELDS)} and the stages' accumulate may change."
        )
    shown = options.print_config
    return Command(experiment, options.run_dir, True, shown, options.run_dir.name, axes)


USAGE = """\
python -m roli_fast.train [--config FILE | --recipe NAME --data NAME [--tuning NAME]]
                          [--FIELD VALUE ...] [--sweep FIELD=VALUES ...] [--run_dir DIR] [--resume]
torchrun --nproc-per-node=N -m roli_fast.train ...

Adversarial linear probing, then adversarial fine-tuning from that head (RoLI), beside the
fine-tune from a fresh head (RanLI). Without --config and --data it runs the quickstart. With
torchrun the processes share every batch: batch_size stays that of an update.

  --config FILE     a YAML file, or the name of a packaged one (quickstart)
  --recipe NAME     published settings: roli, ranli, ramp, twins, autolora, ...; see --help recipe
  --sweep F=VALUES  try every value of field F: --sweep finetune.optimizer.lr=1e-3,1e-4; repeated,
                    every combination. Each method is tested with what validates best
  --run_dir DIR     where everything is written (default: runs/<name>-<time>)
  --resume          continue the interrupted run in --run_dir
  --print_config    print the whole configuration as YAML and stop

Every field can be set on the command line: --threat.eps 4/255 --finetune.epochs 10
--data image_folder --data.root photos --model.name vit_small_patch16_224 --seeds 0,1,2
"""

RECIPE_USAGE = """\
  --recipe NAME     the RoLI paper's settings for --data and --tuning: roli, roli_fast (RoLI by
                    N-FGSM, one step in both stages, beside roli), ranli, ranli_matched
                    (RanLI with the epochs of both stages of RoLI), compare (all three), lp_ft
                    (clean: lp, ft, lp_ft) or lp_ft_compare (ft, lp_ft, ranli, roli); the clean
                    fine-tunes have RoLI's settings of stage 2, without its attack
                    Or the RAMP paper's for --data cifar10, cifar100 or image_folder: ramp, eat,
                    max, msd, sat, avg, training against linf, l2 and l1; --model.name chooses
                    the row (preact_resnet18), and any timm model takes that of a like one
                    Or, with RoLI's --data, the method ranli as twins, twins_trades or autolora on a
                    robust ResNet-50; --methods roli,ranli has RoLI's probe and plain fine-tune too
  --tuning NAME     linear, full, bias, lora, adapter or prompt; RAMP's and its baselines' are
                    published with full, which is left out
  --start NAME      of RAMP and its baselines: finetune, of the classifier in --model.weights, or
                    scratch
  --published NAME  of these: script or text, where the paper's scripts and text differ
"""


def help_text(asked: str) -> str:
    """Usage and the fields' names; what there is to say of the field or component that is asked
    for; with "all" the fields of a run, of a stage, and of every component."""
    usage = Usage(SCHEMA, apart=(Stage,))
    if asked == "recipe":
        return RECIPE_USAGE
    if asked != "all":
        return usage.about(asked) if asked else f"{USAGE}\n{usage.overview()}"
    parts = [USAGE, RECIPE_USAGE, "Fields of a run:", *usage.lines(Experiment, "--")]
    parts += ["", f"Fields of a stage (--STAGE.NAME, STAGE one of {', '.join(STAGES)}); in"]
    parts += ["brackets the usual default, --help STAGE has its own:", *usage.lines(Stage, "  .")]
    parts += ["", "Faults of the RoLI release (--paper_compat all, or some of them):"]
    parts += [line(name, "", text) for name, text in FAULTS.items()]
    parts += ["", "Faults of the releases of E-AT and RAMP (--paper_compat NAME, not in all):"]
    parts += [line(name, "", text) for name, text in RAMP_FAULTS.items()]
    return "\n".join([*parts, *usage.components()])

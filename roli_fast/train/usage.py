"""The text of `--help`."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from roli_fast.configuration.usage import Usage, line
from roli_fast.train.config import SCHEMA
from roli_fast.train.experiment import STAGES, Experiment
from roli_fast.train.paper_compat import FAULTS, RAMP_FAULTS
from roli_fast.train.stage import Stage

USAGE = """\
python -m roli_fast.train [--config FILE | --recipe NAME --data NAME [--tuning NAME]]
                          [--FIELD VALUE ...] [--sweep FIELD=VALUES ...]
                          [--run_dir DIR] [--resume] [--print_config]
torchrun --nproc-per-node=N -m roli_fast.train ...

Adversarial linear probing, then adversarial fine-tuning from that head (RoLI), beside the
fine-tune from a fresh head (RanLI); and both with the attack off: LP-FT (--methods lp_ft) and FT
(ft). --methods ft,lp_ft,ranli,roli compares all four; lp is LP-FT's linear probe alone, solved by
L-BFGS. A stage without an attack is validated on clean images, the test attacks every method.
Without --config and --data it runs the quickstart.
With torchrun the processes share every batch: batch_size stays that of an update.
Each method ends with a short analysis (--analysis_images 0 for none), the run with report.html.

  --config FILE     a YAML file, or the name of a packaged one (quickstart)
  --recipe NAME     the RoLI paper's settings for --data and --tuning: roli, ranli, ranli_matched
                    (RanLI with the epochs of both stages of RoLI), compare (all three), lp_ft
                    (clean: lp, ft, lp_ft) or lp_ft_compare (ft, lp_ft, ranli, roli); the clean
                    fine-tunes have RoLI's settings of stage 2, without its attack
                    Or the RAMP paper's for --data cifar10, cifar100 or image_folder: ramp, eat,
                    max, msd, sat, avg, training against linf, l2 and l1; --model.name chooses
                    the row (preact_resnet18), and any timm model takes that of a like one
  --start NAME      with those: finetune, of the classifier in --model.weights, or scratch
  --published NAME  with those: script or text, where the paper's scripts and text differ
  --tuning NAME     with --recipe: linear, full, bias, lora, adapter or prompt; RAMP's and its
                    baselines' are published with full, which is left out
  --sweep F=VALUES  try every value of field F: --sweep finetune.optimizer.lr=1e-3,1e-4; repeated,
                    every combination. Each method is tested with what validates best
  --run_dir DIR     where everything is written (default: runs/<name>-<time>)
  --resume          continue the interrupted run in --run_dir
  --print_config    print the whole configuration as YAML and stop

Every field can be set on the command line: --threat.eps 4/255 --finetune.epochs 10
--data image_folder --data.root photos --model.name vit_small_patch16_224 --seeds 0,1,2
"""


def help_text() -> str:
    """Usage, the fields of a run, of a stage, and of every component."""
    usage = Usage(SCHEMA, apart=(Stage,))
    parts = [USAGE, "Fields of a run:", *usage.lines(Experiment, "--")]
    parts += [
        "",
        f"Fields of a stage (--STAGE.NAME, STAGE one of {', '.join(STAGES)}):",
    ]
    parts += ["  In brackets the default; a stage's own, where it differs:"]
    parts += [f"    {name}: {own}" for name, own in _stage_defaults()]
    parts += usage.lines(Stage, "  .")
    parts += ["", "Faults of the RoLI release (--paper_compat all, or some of them):"]
    parts += [line(name, "", text) for name, text in FAULTS.items()]
    parts += ["", "Faults of the releases of E-AT and RAMP (--paper_compat NAME, not in all):"]
    parts += [line(name, "", text) for name, text in RAMP_FAULTS.items()]
    return "\n".join([*parts, *usage.components()])


def _stage_defaults() -> Iterator[tuple[str, str]]:
    """What the stages of a run change in a plain `Stage`."""
    plain = _flat(SCHEMA.to_tree(Stage()))
    for field in fields(Experiment):
        stage = field.default_factory() if callable(field.default_factory) else None
        if isinstance(stage, Stage):
            own = {k: v for k, v in _flat(SCHEMA.to_tree(stage)).items() if plain.get(k, v) != v}
            if own:
                yield field.name, ", ".join(f"{k} {v}" for k, v in own.items())


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = value
    return out

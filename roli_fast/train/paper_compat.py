"""The faults of the papers' releases, one by one, for comparing numbers with them. None is on by
default.

Each fault is an option of the component that it concerns (stage, optimiser, attack); the training
loop knows none of them. Sources, read and executed: RoLI's official code at 5f34b8f; E-AT's at
0201a49 and RAMP's at be4971f, which share one.
"""

from collections.abc import Collection, Iterable
from dataclasses import replace

from roli_fast.attacks import PGD, Attack
from roli_fast.errors import ConfigError, describe
from roli_fast.peft import Adapter, Bias, LoRA
from roli_fast.train.optim import Cosine
from roli_fast.train.stage import Stage

FAULTS: dict[str, str] = {
    "zero_lr_epoch": "the rate changes once an epoch, and the first epoch of a warm-up has rate 0",
    "fixed_decay": "AdamW decays by 0.01 whatever weight_decay > 0 says: every tensor whose name "
    "lacks 'bias', norms and prompts too",
    "zero_decay_is_sgd": "AdamW with weight_decay 0 is SGD with momentum 0.9",
    "batch_best": "PGD returns the iterate with the highest mean loss of the batch",
    "wide_head": "fresh heads are head_init kaiming",
    "dead_lora": "LoRA after a probe has both factors zero, which no gradient ever moves",
    "dead_adapter": "adapters are all zero: of them only the last bias ever moves",
    "inert_dropout": "LoRA's dropout is never active",
    "bias_tables": "bias tuning trains Swin's relative position tables too",
}
"""Name -> what RoLI's release does."""

RAMP_FAULTS: dict[str, str] = {
    "unscheduled_bias": "what does not decay (BN, biases) trains at rate 1 from the first update "
    "to the last: only the first group of parameters follows the schedule",
}
"""Name -> what the releases of E-AT and RAMP do from scratch. In their fine-tuning all tensors
decay, so they are one group, and the fault does nothing there."""


def known_faults(names: Iterable[str]) -> tuple[str, ...]:
    """The faults asked for, in the order of the tables. "all" stands for every one of RoLI's: those
    of another paper are asked for by their names, since no release has both.

    Raises:
        ConfigError: a name that is not known, or one given twice.
    """
    given = tuple(names)
    if given == ("all",):
        return tuple(FAULTS)
    known = (*FAULTS, *RAMP_FAULTS)
    wrong = [name for name in given if name not in known]
    if wrong or len(set(given)) < len(given):
        expected = f"'all', or different ones of: {', '.join(known)}"
        raise ConfigError(describe("paper_compat", expected, ", ".join(wrong or given)))
    return tuple(name for name in known if name in given)


def faulty_stage(name: str, stage: Stage, faults: Collection[str]) -> Stage:
    """The stage called `name` with the faults in its schedule, optimiser, attack and tuning."""
    schedule, optimizer, tuning, zeroed = stage.schedule, stage.optimizer, stage.tuning, []
    if "zero_lr_epoch" in faults and isinstance(schedule, Cosine):
        schedule = replace(schedule, each="epoch")
    if optimizer.name == "adamw" and not optimizer.weight_decay and "zero_decay_is_sgd" in faults:
        optimizer = replace(optimizer, name="sgd", momentum=0.9)
    elif optimizer.name == "adamw" and optimizer.weight_decay and "fixed_decay" in faults:
        optimizer = replace(optimizer, decay="release")
    if "unscheduled_bias" in faults:
        optimizer = replace(optimizer, scheduled="decayed")
    if isinstance(tuning, LoRA) and "dead_lora" in faults and name == "finetune":
        zeroed.append("lora_a")  # the release zeroes it in its RoLI runs alone
    if isinstance(tuning, Adapter) and "dead_adapter" in faults:
        zeroed.append(".adapter.")
    if isinstance(tuning, LoRA) and "inert_dropout" in faults:
        tuning = replace(tuning, dropout=0.0)
    if isinstance(tuning, Bias) and "bias_tables" in faults:
        tuning = replace(tuning, tables=True)
    attack = faulty_attack(stage.attack, faults) if stage.attack else None
    parts = {"schedule": schedule, "optimizer": optimizer, "tuning": tuning, "attack": attack}
    return replace(stage, zeroed=(*stage.zeroed, *zeroed), **parts)


def faulty_attack(attack: Attack, faults: Collection[str]) -> Attack:
    """The attack with the faults; only PGD is the release's."""
    batch = "batch_best" in faults and isinstance(attack, PGD)
    return replace(attack, keep="best_batch") if batch else attack

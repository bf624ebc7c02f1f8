"""The faults of the papers' releases, one by one, for comparing numbers with them. None is on by
default.

Each fault is an option of the component that it concerns (stage, optimiser, attack); the training
loop knows none of them. Sources, read and executed: RoLI's official code at 5f34b8f; E-AT's at
0201a49 and RAMP's at be4971f, which share one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from torch import Tensor

from roli_fast.attacks import PGD, Attack
from roli_fast.attacks.restarts import Best
from roli_fast.errors import ConfigError, describe
from roli_fast.models import HeadInit
from roli_fast.peft import Adapter, Bias, LoRA, Method
from roli_fast.train.optim import Cosine, Optimizer
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

AFTER_PROBE = "finetune"
"""The stage that starts from a probed head: the release zeroes LoRA's A in its RoLI runs alone."""


def known_faults(names: Iterable[str]) -> tuple[str, ...]:
    """The faults asked for, in the order of the tables. "all" stands for every one of RoLI's: those
    of another paper are asked for by their names, since no release has both.

    Raises:
        ConfigError: a name that is not known, or one given twice.
    """
    given = tuple(names)
    if given == ("all",):
        return tuple(FAULTS)
    names_known = (*FAULTS, *RAMP_FAULTS)
    wrong = [name for name in given if name not in names_known]
    if wrong or len(set(given)) < len(given):
        known = f"'all', or different ones of: {', '.join(names_known)}"
        raise ConfigError(describe("paper_compat", known, ", ".join(wrong or given)))
    return tuple(name for name in names_known if name in given)


@dataclass(frozen=True)
class PaperCompat:
    """Puts the faults named into what a run is built from; without any, everything stays itself."""

    faults: tuple[str, ...] = ()

    def stage(self, name: str, stage: Stage) -> Stage:
        """The stage called `name` with the faults in its schedule, optimiser, attack and tuning."""
        if not self.faults:
            return stage
        schedule, zeroed = stage.schedule, stage.zeroed
        if isinstance(schedule, Cosine) and "zero_lr_epoch" in self.faults:
            schedule = replace(schedule, each="epoch")
        if isinstance(stage.tuning, LoRA) and name == AFTER_PROBE and "dead_lora" in self.faults:
            zeroed = (*zeroed, "lora_a")
        if isinstance(stage.tuning, Adapter) and "dead_adapter" in self.faults:
            zeroed = (*zeroed, ".adapter.")
        return replace(
            stage,
            schedule=schedule,
            zeroed=zeroed,
            tuning=self._tuning(stage.tuning),
            attack=self.attack(stage.attack) if stage.attack else None,
            optimizer=self._optimizer(stage.optimizer),
        )

    def attack(self, attack: Attack) -> Attack:
        """PGD that keeps one iterate for the whole batch; other attacks are not the release's."""
        if "batch_best" in self.faults and isinstance(attack, PGD):
            own = {f.name: getattr(attack, f.name) for f in fields(attack) if f.init}
            return BatchBestPGD(**{**own, "keep": "best"})  # pyright: ignore[reportArgumentType]
        return attack

    def head_init(self, init: HeadInit) -> HeadInit:
        """How fresh heads start."""
        return "kaiming" if "wide_head" in self.faults else init

    def _tuning(self, tuning: Method) -> Method:
        if isinstance(tuning, LoRA) and "inert_dropout" in self.faults:
            return replace(tuning, dropout=0.0)
        if isinstance(tuning, Bias) and "bias_tables" in self.faults:
            return replace(tuning, tables=True)
        return tuning

    def _optimizer(self, optimizer: Optimizer) -> Optimizer:
        if optimizer.name == "adamw" and not optimizer.weight_decay:
            if "zero_decay_is_sgd" in self.faults:
                optimizer = replace(optimizer, name="sgd", momentum=0.9)
        elif optimizer.name == "adamw" and "fixed_decay" in self.faults:
            optimizer = replace(optimizer, decay="release")
        if "unscheduled_bias" in self.faults:
            optimizer = replace(optimizer, scheduled="decayed")
        return optimizer


@dataclass(frozen=True)
class BatchBestPGD(PGD):
    """PGD whose "best" iterate is that of the highest mean loss, one for the whole batch."""

    def keeper(self) -> Best:
        """Compares batches."""
        return _BatchBest()


class _BatchBest(Best):
    def better(self, loss: Tensor, kept: Tensor) -> Tensor:
        return (loss.mean() > kept.mean()).expand_as(loss)

"""The faults of the papers' releases, one by one, for comparing numbers with them. None is on by
default.

Each fault is a variant of the component that it concerns (stage, optimiser, attack); the training
loop knows none of them. Sources, read and executed: RoLI's official code at 5f34b8f; E-AT's at
0201a49 and RAMP's at be4971f, which share one.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from roli_fast.attacks import PGD, Attack
from roli_fast.attacks.pgd import Best
from roli_fast.errors import ConfigError, describe
from roli_fast.models import Classifier, HeadInit
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
        parts = _fields(stage) | {
            "tuning": self._tuning(stage.tuning),
            "attack": self.attack(stage.attack) if stage.attack else None,
            "optimizer": ReleaseOptimizer(**_fields(stage.optimizer), faults=self.faults),
        }
        return ReleaseStage(**parts, faults=self.faults, after_probe=name == AFTER_PROBE)

    def attack(self, attack: Attack) -> Attack:
        """PGD that keeps one iterate for the whole batch; other attacks are not the release's."""
        if "batch_best" in self.faults and isinstance(attack, PGD):
            return BatchBestPGD(**_fields(replace(attack, keep="best")))
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


@dataclass(frozen=True)
class ReleaseStage(Stage):
    """A stage with the faults that concern its schedule and its initial values."""

    faults: tuple[str, ...] = ()
    after_probe: bool = False

    def lr_factor(self, update: int, *, steps: int) -> float:
        """As the base says; a cosine with `zero_lr_epoch` is constant within an epoch and 0 in the
        first. RoLI's release has no other schedule."""
        if "zero_lr_epoch" not in self.faults or not isinstance(self.schedule, Cosine):
            return super().lr_factor(update, steps=steps)
        epoch, warmup = update // steps, self.warmup_epochs
        if epoch < warmup:
            return epoch / max(1, warmup)
        share = (epoch - warmup) / max(1, self.epochs - warmup)
        return max(0.0, 0.5 * (1 + math.cos(math.pi * share)))

    def begin(self, model: Classifier) -> None:
        """Zero the factors that never move from there."""
        lora = isinstance(self.tuning, LoRA) and self.after_probe and "dead_lora" in self.faults
        adapter = isinstance(self.tuning, Adapter) and "dead_adapter" in self.faults
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if (lora and name.endswith(".lora_a")) or (adapter and ".adapter." in name):
                    parameter.zero_()


@dataclass(frozen=True)
class ReleaseOptimizer(Optimizer):
    """An optimiser with the faults that concern the decay, and which rates are scheduled."""

    faults: tuple[str, ...] = ()

    def build(self, model: nn.Module, names: Iterable[str]) -> torch.optim.Optimizer:
        """As the base says, with the faults of the decay where the optimiser is AdamW."""
        built = self._decaying(model, names)
        if "unscheduled_bias" in self.faults:
            built.register_step_pre_hook(_first_group_alone)
        return built

    def _decaying(self, model: nn.Module, names: Iterable[str]) -> torch.optim.Optimizer:
        chosen = list(names)
        if self.name == "adamw" and not self.weight_decay and "zero_decay_is_sgd" in self.faults:
            return replace(self, name="sgd", momentum=0.9)._decaying(model, chosen)
        if self.name == "adamw" and self.weight_decay and "fixed_decay" in self.faults:
            parameters = dict(model.named_parameters())
            groups = [
                {
                    "params": [parameters[n] for n in chosen if ("bias" in n) == bias],
                    "weight_decay": w,
                }
                for bias, w in ((False, 0.01), (True, 0.0))
            ]
            groups = [group for group in groups if group["params"]]
            return self.adamw(groups)
        return super().build(model, chosen)


def _first_group_alone(optimizer: torch.optim.Optimizer, _args: Any, _options: Any) -> None:
    """The original's optimiser begins at rate 1, and its loop writes to the first group alone."""
    for group in optimizer.param_groups[1:]:
        group["lr"] = 1.0


@dataclass(frozen=True)
class BatchBestPGD(PGD):
    """PGD whose "best" iterate is that of the highest mean loss, one for the whole batch."""

    def keeper(self) -> Best:
        """Compares batches."""
        return _BatchBest()


class _BatchBest(Best):
    def better(self, loss: Tensor, kept: Tensor) -> Tensor:
        return (loss.mean() > kept.mean()).expand_as(loss)


def _fields(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in fields(value) if f.init}

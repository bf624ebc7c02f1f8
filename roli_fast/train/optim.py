"""Optimisers, and how the learning rate moves over the updates of a stage."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, cast, get_args

import torch
from torch import nn

from roli_fast.errors import ArgumentError, check_choice, describe
from roli_fast.peft.base import head_names
from roli_fast.peft.bias import TABLES
from roli_fast.registry import Registry
from roli_fast.threat import check_positive

_CLOSE = 1e-9
"""Shares of a stage that differ by less are one: a third of 1173 updates is the 391st."""


class Schedule:
    """Base of all schedules. A subclass is a frozen dataclass: its fields configure it."""

    def check(self, epochs: int) -> None:
        """Raise `ArgumentError` where this schedule does not fit a stage of so many epochs."""

    def share(self, update: int, *, epochs: int, steps: int, warmup: float) -> float:
        """Share of the peak rate at one update.

        Args:
            update: counted from 0 over the whole stage.
            epochs: of the stage.
            steps: updates an epoch.
            warmup: the stage's warm-up in epochs; a fraction is fine.
        """
        raise NotImplementedError

    def halvings(self, scores: Sequence[float]) -> int:
        """How often validation has halved the rate, given its accuracies so far, in their order.
        Each time the stage goes on from its best weights."""
        return 0

    def ended(self, scores: Sequence[float]) -> bool:
        """Whether a stage with these validation accuracies is over before its last epoch."""
        return False


SCHEDULES: Registry[type[Schedule]] = Registry("schedule")


@SCHEDULES.register("cosine")
@dataclass(frozen=True)
class Cosine(Schedule):
    """A linear warm-up, whose first update is one step above zero, then half a cosine to zero.

    Args:
        each: "update"; or "epoch", the rate changes once an epoch and the first epoch of a warm-up
            has rate 0, as in RoLI's release.
    """

    each: Literal["update", "epoch"] = "update"

    def share(self, update: int, *, epochs: int, steps: int, warmup: float) -> float:
        at, total, rising = update, epochs * steps, round(warmup * steps)
        if self.each == "epoch":
            at, total, rising = update // steps, epochs, warmup
        if at < rising:
            return (at + (self.each == "update")) / max(1, rising)
        return 0.5 * (1 + math.cos(math.pi * (at - rising) / max(1, total - rising)))


@SCHEDULES.register("step")
@dataclass(frozen=True)
class Step(Schedule):
    """A linear warm-up, if any, then a constant rate that each milestone multiplies by `factor`.

    The default is that of E-AT's and RAMP's fine-tuning: a tenth each third.

    Args:
        milestones: where the rate changes, ascending: below 1 a share of the stage, from 1 on the
            epochs before it. "70" keeps the rate for 70 epochs.
        factor: what the rate is multiplied by, in (0, 1).
        each: "update", a milestone counts from its very update on; "epoch", from the next epoch's
            beginning on.
    """

    milestones: tuple[float, ...] = (1 / 3, 2 / 3)
    factor: float = 0.1
    each: Literal["update", "epoch"] = "update"

    def __post_init__(self) -> None:
        if not 0 < self.factor < 1:
            raise ArgumentError(describe("factor", "a number in (0, 1)", self.factor))
        rising = [0.0, *self.milestones, math.inf]
        if any(a >= b for a, b in pairwise(rising)):
            expected, fix = "ascending numbers > 0", "Below 1 they are shares, from 1 on epochs."
            raise ArgumentError(describe("milestones", expected, self.milestones, fix))

    def check(self, epochs: int) -> None:
        """A milestone that is never reached is refused."""
        late = [m for m in self.milestones if m >= epochs and m >= 1]
        if late:
            expected = f"shares below 1, or epochs below those of the stage ({epochs})"
            fix = "0.5 is the middle of a stage of any length."
            raise ArgumentError(describe("milestones", expected, late[0], fix))

    def share(self, update: int, *, epochs: int, steps: int, warmup: float) -> float:
        rising = round(warmup * steps)
        at = update - update % steps if self.each == "epoch" else update
        passed = 0
        for milestone in self.milestones:
            done = at / steps / (epochs if milestone < 1 else 1)
            passed += done + _CLOSE >= milestone
        return self.factor**passed * ((update + 1) / rising if update < rising else 1.0)


@SCHEDULES.register("triangle")
@dataclass(frozen=True)
class Triangle(Schedule):
    """Linear from zero to the peak, then linear to zero, update by update.

    No update is at zero: the first is one update above it, and so is the last. The stage's
    warmup_epochs play no part, for it rises by itself.

    Args:
        peak: share of the stage at which the rate is highest, in (0, 1).
    """

    peak: float = 0.4

    def __post_init__(self) -> None:
        if not 0 < self.peak < 1:
            raise ArgumentError(describe("peak", "a number in (0, 1)", self.peak))

    def share(self, update: int, *, epochs: int, steps: int, warmup: float) -> float:
        total = epochs * steps
        rising = max(1, round(self.peak * total))
        if update < rising:
            return (update + 1) / rising
        return (total - update) / max(1, total - rising)


@SCHEDULES.register("auto")
@dataclass(frozen=True)
class Auto(Schedule):
    """A linear warm-up, if any, then a rate that is halved whenever validation stalls: AutoLoRa's
    (arXiv:2310.01818), there from 0.01 on, for at most 60 epochs.

    Every `window` validations it looks back as far. Unless `rises` of them were above the one
    before, and one is the best so far, the rate is halved, and the stage goes on from its best
    weights; the optimiser's state is kept.

    Args:
        window: validations from one look to the next; the first look is after one more.
        rises: how many of them must have risen.
        lowest: share of the peak rate below which the stage ends.
    """

    window: int = 4
    rises: int = 3
    lowest: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.rises <= self.window or self.window < 1:
            raise ArgumentError(describe("rises", f"0 to window ({self.window})", self.rises))
        check_positive("lowest", self.lowest, zero=True)

    def share(self, update: int, *, epochs: int, steps: int, warmup: float) -> float:
        return min(1.0, (update + 1) / max(1, round(warmup * steps)))

    def halvings(self, scores: Sequence[float]) -> int:
        count = 0
        for end in range(self.window, len(scores), self.window):
            start = end - self.window
            rose = sum(b > a for a, b in pairwise(scores[start : end + 1]))
            before = max(scores[: start + 1]) if start else 0.0
            count += rose < self.rises or max(scores[: end + 1]) <= before
        return count

    def ended(self, scores: Sequence[float]) -> bool:
        return 0.5 ** self.halvings(scores) < self.lowest


Decay = Literal["matrices", "all", "release"]
"""Which trainable tensors decay."""


@dataclass(frozen=True)
class Optimizer:
    """What updates the trainable parameters.

    Args:
        name: "adamw", "sgd", or "lbfgs": full-batch logistic regression on the features of all
            training images, computed once without augmentation; for linear tuning without an
            attack. It has no rate and no epochs.
        lr: peak learning rate; it is used as given, never scaled by the batch size. Null, for SGD
            of the head alone, is 1 over the mean squared norm of its features: a rate that suits
            features of any scale.
        head_lr: peak learning rate of the head; null is `lr`.
        weight_decay: of AdamW and SGD, decay of the tensors that `decay` names, used as given.
        momentum: of SGD.
        betas: of AdamW.
        eps: of AdamW, added to the root of the second moment.
        decay: "matrices", and kernels: 1-D parameters (biases, norms), class tokens, prompts and
            position tables never decay; "all", every tensor that trains, as in E-AT's and RAMP's
            fine-tuning; or "release", by 0.01 whatever weight_decay says every tensor whose name
            lacks "bias", as in RoLI's release.
        scheduled: "all"; or "decayed", only the tensors that decay follow the schedule, and
            the rest trains at rate 1, as in the releases of E-AT and RAMP.
        strengths: of lbfgs, in place of weight_decay: values of the penalty strength / 2 ||W||^2 on
            the mean loss that are tried, the bias left out; the highest validation accuracy
            chooses, of equals the lowest validation loss. scikit-learn's C is 1 / (strength N).
        iterations: of lbfgs, the most for a strength.
    """

    name: Literal["adamw", "sgd", "lbfgs"] = "adamw"
    lr: float | None = 1e-3
    head_lr: float | None = None
    weight_decay: float = 0.01
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    decay: Decay = "matrices"
    scheduled: Literal["all", "decayed"] = "all"
    strengths: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    iterations: int = 500

    def __post_init__(self) -> None:
        for name in ("lr", "head_lr"):
            if (rate := getattr(self, name)) is not None:
                check_positive(name, rate)
        check_choice("name", self.name, ("adamw", "sgd", "lbfgs"))
        check_choice("decay", self.decay, get_args(Decay))
        if self.lr is None and self.name != "sgd":
            raise ArgumentError(describe("lr", f"a number > 0 with {self.name}", "null"))
        if self.head_lr is not None and self.scheduled == "decayed":
            raise ArgumentError(describe("head_lr", "null beside scheduled", self.head_lr))
        if not self.weight_decay >= 0:
            raise ArgumentError(describe("weight_decay", "a number >= 0", self.weight_decay))
        if not self.strengths:
            fix = "Separable features have no best head without a penalty."
            raise ArgumentError(describe("strengths", "one or more numbers > 0", "none", fix))
        for strength in self.strengths:
            check_positive("strengths", strength)

    def build(self, model: nn.Module, names: Collection[str]) -> torch.optim.Optimizer:
        """The torch optimiser, sgd or adamw, over the named parameters of `model`."""
        assert self.lr is not None, "chosen before"
        groups = list[dict[str, Any]]()
        head = set(head_names(model)) if self.head_lr is not None else set[str]()
        for own, rate in ((False, self.lr), (True, self.head_lr)):
            part = [name for name in names if (name in head) == own]
            found = parameter_groups(model, part, weight_decay=self.weight_decay, decay=self.decay)
            groups += [group | {"lr": rate} for group in found]
        if self.name == "sgd":
            built = torch.optim.SGD(groups, momentum=self.momentum, fused=True)
        else:
            built = torch.optim.AdamW(groups, betas=self.betas, eps=self.eps, fused=True)
        if self.scheduled == "decayed":
            built.register_step_pre_hook(_first_group_alone)
        return built


def _first_group_alone(optimizer: torch.optim.Optimizer, _args: Any, _options: Any) -> None:
    """The original's optimiser begins at rate 1, and its loop writes to the first group alone."""
    for group in optimizer.param_groups[1:]:
        group["lr"] = 1.0


def parameter_groups(
    model: nn.Module, names: Iterable[str], *, weight_decay: float, decay: Decay = "matrices"
) -> list[dict[str, Any]]:
    """Two groups, with and without decay; which parameter is where follows from shape and role.

    Without decay, unless all have it: tensors with fewer than two dimensions, relative position
    tables, and what a module itself lists in `no_weight_decay` (class tokens, position tables,
    prompts).
    """
    parameters, chosen = dict(model.named_parameters()), list(names)
    decayed = set(chosen)
    if decay == "release":
        decayed, weight_decay = {name for name in chosen if "bias" not in name}, 0.01
    elif decay == "matrices":
        exempt = _exempt(model)
        decayed = {n for n in chosen if parameters[n].ndim >= 2 and n not in exempt}
    groups = []
    for own, inside in ((weight_decay, True), (0.0, False)):
        if part := [parameters[name] for name in chosen if (name in decayed) == inside]:
            groups.append({"params": part, "weight_decay": own})
    return groups


def _exempt(model: nn.Module) -> set[str]:
    names = {n for n, _ in model.named_parameters() if n.rpartition(".")[2] in TABLES}
    for prefix, module in model.named_modules():
        listed = getattr(module, "no_weight_decay", None)
        if callable(listed):
            found = cast(Iterable[str], listed())
            names |= {f"{prefix}.{name}" if prefix else name for name in found}
    return names

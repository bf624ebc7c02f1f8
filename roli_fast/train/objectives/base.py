"""The interface of an objective, the table of all of them, those that any attack serves (plain
adversarial training, TRADES), and what several share."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from roli_fast import losses
from roli_fast.attacks import Attack, MultiAPGD
from roli_fast.attacks.base import AttackInputs
from roli_fast.data import Batch
from roli_fast.engine import Engine
from roli_fast.errors import ArgumentError, describe
from roli_fast.losses import cross_entropy
from roli_fast.norms import NORMS
from roli_fast.registry import Registry
from roli_fast.seeds import derived_generator
from roli_fast.threat import check_positive
from roli_fast.train.alignment import Alignment


class Terms(NamedTuple):
    """What a training step needs of one batch, or of one part of it.

    Args:
        loss: scalar with a graph.
        logits: (B, C) on the images trained on, detached; where several images were made of a
            sample, on the one with the largest loss.
        counts: (k,) float64 on the batch's device, k being the objective's `counters`; None for
            nothing to count.
    """

    loss: Tensor
    logits: Tensor
    counts: Tensor | None = None


class Step(NamedTuple):
    """What the loss of a batch, or of one part of it, is made of.

    Args:
        model: in the mode in which it is updated.
        batch: clean images (B, ...) in the bounds and labels on the model's device, and ids.
        attack: makes the training images; None trains on clean images.
        generator: source of the attack's randomness.
        engine: how the attack's passes are made.
        counts: (k,) float64 on the model's device, all that the objective counted in this stage
            before this update, over all processes.
        draw: uniform in [0, 1): another for each update, the same in all its parts and processes.
        alignment: is shown the gradients of a single step; None where nobody asks.
        accuracy: clean accuracy of the objective's `measured` network on the training images at the
            beginning of the epoch, a fraction.
    """

    model: nn.Module
    batch: Batch
    attack: Attack | None
    generator: Generator
    engine: Engine
    counts: Tensor = torch.zeros(0, dtype=torch.float64)
    draw: float = 0.0
    alignment: Alignment | None = None
    accuracy: float = 0.0


class Objective:
    """Base of all objectives. A subclass is a frozen dataclass: its fields configure it.

    It keeps nothing between the calls. What it has to remember it counts (`Terms.counts`): the loop
    adds the counts up over the parts of an update, the processes and the whole stage, keeps them in
    the resume file, and shows them to the updates that follow (`Step.counts`).
    """

    @property
    def counters(self) -> int:
        """How many numbers `Terms.counts` holds."""
        return 0

    @property
    def needs_accuracies(self) -> bool:
        """Whether `settled` has to be called before the first update."""
        return False

    def beside(self, model: nn.Module, generator: Generator) -> nn.Module | None:
        """What the objective trains, or keeps, beside the model's own tensors; see `attach`.

        Args:
            model: as the stage's tuning left it, on the stage's device.
            generator: the CPU's, source of initial values.

        Raises:
            ArgumentError: the model has no place for it.
        """
        return None

    def measured(self, model: nn.Module) -> nn.Module | None:
        """The network, made of a model with its `beside`, whose `Step.accuracy` is wanted; None
        where nothing is measured."""
        return None

    def images(self, attack: Attack) -> int:
        """How many images of a sample an update passes forward and back to the weights, where
        `attack`, under the run's threat, makes some: for estimates."""
        return 1

    def check(self, attack: Attack | None) -> None:
        """Called before anything runs, with the stage's attack under the run's threat.

        Raises:
            ArgumentError: this objective cannot use `attack`.
        """

    def settled(self, accuracies: Mapping[str, float]) -> "Objective":
        """The objective of the stage, given what the model is like before its first update.

        Args:
            accuracies: robust accuracy on the validation split, a fraction, under each of the
                threat's norms by itself.
        """
        return self

    def __call__(self, step: Step) -> Terms:
        """The loss of one batch: `on_attacked`, or plain cross-entropy on the clean images where
        the attack is off.

        It is called inside `engine.training`: logits may be in bf16, and `losses` raise them to
        fp32.
        """
        if step.attack is not None:
            return self.on_attacked(step, step.attack)
        logits = step.model(attacked(step))
        return Terms(cross_entropy(logits, step.batch.y).mean(), logits.detach())

    def on_attacked(self, step: Step, attack: Attack) -> Terms:
        """The loss of one batch where there is an attack, the step's."""
        raise NotImplementedError


OBJECTIVES: Registry[type[Objective]] = Registry("objective")

BESIDE = "beside"
"""Name in the model of what an objective trains beside it."""


def attach(model: nn.Module, objective: Objective, seed: int) -> list[str]:
    """Put the objective's `beside` into a model; returns the names of what of it trains.

    There a stage optimises, copies and resumes it like the rest. A forward of the model knows
    nothing of it, so attacks, evaluations and files are those of the network alone.
    """
    own = objective.beside(model, derived_generator(seed, "objective"))
    if own is None:
        return []
    model.add_module(BESIDE, own)
    return [f"{BESIDE}.{name}" for name, p in own.named_parameters() if p.requires_grad]


def detach(model: nn.Module) -> None:
    """Take out what `attach` put in, if anything."""
    model._modules.pop(BESIDE, None)


FoundT = TypeVar("FoundT")


def searched(search: Callable[[AttackInputs], FoundT], step: Step) -> FoundT:
    """What an attack's `search` finds for a batch. What is drawn for a sample depends on the
    generator and its id alone, neither on its place in the batch nor on how large that is.
    """
    x, engine = step.batch.x, step.engine
    ids = step.batch.ids.to(x.device, non_blocking=True)  # pinned where that is a GPU
    # the attack's passes see to their own precision: those around it are the training forward's
    apart: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if engine.low_precision_dtype is not None:
        apart = torch.autocast(x.device.type, enabled=False)
    with apart:
        return search(AttackInputs(step.model, x, step.batch.y, step.generator, engine, ids))


def attacked(step: Step) -> Tensor:
    """The images to train on, (B, ...), in the engine's layout; clean ones without an attack."""
    if step.attack is None:
        return step.engine.to_memory_format(step.batch.x)
    found = searched(step.attack.search, step)
    x_adv = step.engine.to_memory_format(found.x_adv)
    return step.alignment.watched(x_adv, found.start_grad) if step.alignment else x_adv


def needs_attack(attack: Attack | None, objective: str) -> Attack:
    """The attack. Raises `ArgumentError` where there is none."""
    if attack is None:
        fix = "Choose one, or train on clean images with objective adversarial."
        raise ArgumentError(describe("attack", f"one beside objective {objective}", None, fix))
    return attack


DROP_FIELDS = ("p", "prob", "drop", "dropout", "drop_prob", "drop_rate")
"""Where modules of torch, timm and torchvision keep the probability of what they leave out."""


def is_independent(model: nn.Module) -> bool:
    """Whether a forward in the modes that the modules are in gives each image the logits that it
    would get in any other batch, and leaves nothing behind.

    Not so for a module in training mode that keeps running statistics or has a number above 0 in
    one of `DROP_FIELDS`, for RReLU, and for a BatchNorm without running statistics in any mode. A
    network that draws in none of these ways is not seen.
    """
    return not any(map(_looks_at_the_batch_or_draws, model.modules()))


def _looks_at_the_batch_or_draws(module: nn.Module) -> bool:
    if isinstance(module, _BatchNorm) and module.running_mean is None:
        return True
    kept = dict(module.named_buffers(recurse=False)).keys() & {"running_mean", "running_var"}
    chances = [vars(module).get(name) for name in DROP_FIELDS]
    draws = any(isinstance(chance, (int, float)) and chance > 0 for chance in chances)
    return module.training and (bool(kept) or draws or isinstance(module, nn.RReLU))


def logits_of(model: nn.Module, images: Sequence[Tensor], engine: Engine) -> list[Tensor]:
    """Logits (B, C) of each of these batches (B, ...), in their order.

    One forward of all together where the model is independent: the same but for rounding, and in
    one pass that fills the device better. Else one forward each, as the methods' authors make them:
    a BatchNorm normalises each by its own statistics, and its running ones see all.
    """
    if len(images) > 1 and is_independent(model):
        together = model(engine.to_memory_format(torch.cat([*images])))
        return [*together.split([len(batch) for batch in images])]
    return [model(engine.to_memory_format(batch)) for batch in images]


def check_norms(name: str, norms: Sequence[str], *, fewest: int = 1) -> None:
    """Raise unless the field `name` holds so many norms or more, all different."""
    for norm in norms:
        if norm not in NORMS:
            raise ArgumentError(describe(name, f"any of: {', '.join(NORMS)}", repr(norm)))
    if len(norms) < fewest or len(set(norms)) < len(norms):
        raise ArgumentError(describe(name, f"{fewest} or more different norms", tuple(norms)))


def in_norms(
    attack: Attack | None, norms: Sequence[str] | None, objective: str, *, fewest: int = 1
) -> MultiAPGD:
    """The attack in these norms alone; in all of its own, `fewest` or more, for None.

    Raises:
        ArgumentError: there is none, it does not search norms one by one, or it has no radius for
            one of them.
    """
    attack = needs_attack(attack, objective)
    if not isinstance(attack, MultiAPGD):
        fix = "Write attack: multi_apgd, and name the norms under threat."
        expected = f"multi_apgd beside objective {objective}"
        raise ArgumentError(describe("attack", expected, repr(attack), fix))
    if norms is not None:
        return attack.only(*norms)
    own = attack.norms or ()
    if len(own) < fewest:
        fix = "Write threat.other_norms and threat.other_eps."
        raise ArgumentError(describe("norms", f"{fewest} or more in the attack", own, fix))
    return attack


@OBJECTIVES.register("adversarial")
@dataclass(frozen=True)
class Adversarial(Objective):
    """Mean cross-entropy on the attacked images; on the clean ones where the attack is off.

    Madry et al., ICLR 2018, equation 2.1.

    Args:
        label_smoothing: share of the target spread evenly over all classes, in [0, 1).
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ArgumentError(
                describe("label_smoothing", "a number in [0, 1)", self.label_smoothing)
            )

    def __call__(self, step: Step) -> Terms:
        logits = step.model(attacked(step))
        loss = cross_entropy(logits, step.batch.y, label_smoothing=self.label_smoothing).mean()
        return Terms(loss, logits.detach())


@OBJECTIVES.register("trades")
@dataclass(frozen=True)
class TRADES(Objective):
    """Cross-entropy on the clean images plus beta * KL(p_clean || p_attacked); see `losses.trades`
    (Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019,
    arXiv:1901.08573).

    Any attack will do, pgd with its cross-entropy say. The paper's own maximises that KL: attack
    pgd or apgd with loss: kl; its PGD starts from normal noise of 0.001, ours anywhere in the ball.
    Clean and attacked images share one forward where the network treats each by itself
    (`is_independent`), else each have their own, as in the release, which forwards the clean ones
    twice.

    Args:
        beta: weight of the KL, 1 / lambda in the paper; 6 in its main results.
    """

    beta: float = 6.0

    def __post_init__(self) -> None:
        check_positive("beta", self.beta, zero=True)

    def images(self, attack: Attack) -> int:
        return 2

    def check(self, attack: Attack | None) -> None:
        needs_attack(attack, "trades")

    def on_attacked(self, step: Step, attack: Attack) -> Terms:
        """The logits are those on the attacked images."""
        clean, moved = logits_of(step.model, [step.batch.x, attacked(step)], step.engine)
        loss = losses.trades(clean, moved, step.batch.y, beta=self.beta)
        return Terms(loss, moved.detach())

"""A search whose finds hold for the plain model, whatever precision it searched in."""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from roli_fast.attacks.base import Attack, AttackInputs, AttackResult
from roli_fast.attacks.objective import RULES, is_right
from roli_fast.attacks.passes import column
from roli_fast.engine import Cost, InputGradient, bound, plain
from roli_fast.engine.input_gradient import Model
from roli_fast.losses import cross_entropy


@dataclass(frozen=True)
class Checked:
    """What a search found, by the plain model.

    Args:
        result: `fooled` (B,) says where `x_adv` is misclassified by the plain model; all other
            images are as they were. Its cost holds all passes, also those of the checks.
        predictions: int64 (B,), what the plain model takes a fooled image for; -1 elsewhere.
        lost: bool (B,), found by the first search and classified right by the plain model.
        regained: how many of these a second search by the plain model fooled.
    """

    result: AttackResult
    predictions: Tensor
    lost: Tensor
    regained: int


def search(attack: Attack, inputs: AttackInputs) -> Checked:
    """Run an attack, show what it found to the plain model, and keep what fools that too.

    In low precision an image next to the boundary may look fooled, one that is right by the plain
    model may even look wrong to begin with and is then not searched at all. So what was lost is
    searched once more by the plain model, with the same draws. So it is in fp32 with an engine that
    changes last bits, by folding, say.

    Args:
        attack: any search; what counts is misclassification, also where it has targets.
        inputs: of the first search; checks and second search have its engine's `plain`.
    """
    model, x, y = bound(inputs.model, inputs.engine), inputs.x, inputs.y
    inputs = replace(inputs, model=model, engine=None, sample_ids=inputs.ids)
    again = replace(inputs, model=plain(model), generator=_copy_of(inputs.generator, x.device))
    found = attack.search(inputs)
    by_target = getattr(attack, "targets", None) in RULES  # then fooled means: the target reached
    looked = found.fooled
    if looked is None or by_target:
        looked = torch.ones_like(y, dtype=torch.bool)
    predictions, cost = misclassified_as(plain(model), found.x_adv, y, looked)
    fooled, cost = predictions >= 0, cost + found.cost
    x_adv = torch.where(column(fooled, x), found.x_adv, x.detach())
    lost = torch.zeros_like(fooled) if found.fooled is None else found.fooled & ~fooled
    rows = lost.nonzero()[:, 0]
    if model.engine.exact or len(rows) == 0:
        result = replace(found, x_adv=x_adv, cost=cost, fooled=fooled)
        return Checked(result, predictions, lost, 0)
    second = search(attack, again.at(rows))
    x_adv = x_adv.index_copy(0, rows, second.result.x_adv)
    predictions = predictions.index_copy(0, rows, second.predictions)
    result = AttackResult(x_adv, cost + second.result.cost, predictions >= 0, found.notes)
    return Checked(result, predictions, lost, int((second.predictions >= 0).sum()))


def misclassified_as(model: Model, x: Tensor, y: Tensor, among: Tensor) -> tuple[Tensor, Cost]:
    """The class (B,) that each image (B, ...) of those in `among` (B,) is wrongly taken for, -1
    where it is right or not among them; one pass on these.

    A NaN among the logits counts as misclassified.
    """
    rows, classes = among.nonzero()[:, 0], torch.full_like(y, -1)
    if len(rows) == 0:
        return classes, Cost(0, 0)
    with InputGradient(model) as engine, torch.no_grad():
        labels = y[rows]
        logits = engine.evaluate(x[rows], labels, cross_entropy)[1]
        others = logits.scatter(1, labels[:, None], -torch.inf).argmax(1)
        classes[rows] = torch.where(is_right(logits, labels), -1, others)
        return classes, engine.cost


def _copy_of(generator: Generator | None, device: torch.device) -> Generator:
    """A generator that draws what this one, or torch's global one, would draw next."""
    if generator is None:
        on_cpu = device.type == "cpu"
        state = torch.get_rng_state() if on_cpu else torch.cuda.get_rng_state(device)
        return Generator(device).set_state(state)
    return Generator(generator.device).set_state(generator.get_state())

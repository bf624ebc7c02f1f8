"""Features, logits and labels of many samples, clean or attacked, in one place."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from roli_fast.analysis.costs import Cost, attack_cost, count_of, say_for
from roli_fast.analysis.view import LinearHead, eval_mode
from roli_fast.attacks import Attack, AttackResult
from roli_fast.data import Batch
from roli_fast.engine import Engine
from roli_fast.engine.input_gradient import check_device, check_labels, check_logits
from roli_fast.errors import ArgumentError, describe
from roli_fast.losses import at_least_float32
from roli_fast.seeds import derived_generator


@dataclass(frozen=True, eq=False)
class Gathered:
    """What a model makes of N samples, on the CPU, in the order of the data.

    Args:
        features: phi (N, D), fp32 (fp64 of a model in fp64).
        logits: (N, C), likewise.
        y: labels (N,), int64.
        ids: sample ids (N,), int64.
        cost: the passes that were made.
        x: the model's inputs (N, ...), attacked where there was an attack; None unless kept.
    """

    features: Tensor = field(repr=False)
    logits: Tensor = field(repr=False)
    y: Tensor = field(repr=False)
    ids: Tensor = field(repr=False)
    cost: Cost
    x: Tensor | None = field(repr=False, default=None)

    def __len__(self) -> int:
        return len(self.y)


def attacked(
    model: nn.Module, batch: Batch, attack: Attack, *, seed: int = 0, engine: Engine | None = None
) -> AttackResult:
    """What an attack makes of a batch, with the draws of `evaluate` at this seed: a sample's depend
    on seed, the attack's label and the sample's id alone."""
    x, y, ids = batch
    generator = derived_generator("evaluate", seed, attack.label, device=x.device)
    return attack.run(model, x, y, generator, engine=engine, sample_ids=ids.to(x.device))


def gather_cost(
    model: nn.Module | LinearHead,
    images: int,
    attack: Attack | None = None,
    *,
    kept_bytes: int = 0,
) -> Cost:
    """A forward a sample, after the attack's passes; N (D + C) numbers are held.

    Args:
        model: the model, or the view of it.
        images: N.
        attack: under its threat; the most that it costs is counted.
        kept_bytes: of one input, where inputs are kept.
    """
    view = LinearHead.of(model)
    held = images * (4 * (view.dimensions + view.classes) + 16 + kept_bytes)
    cost = Cost("features", forwards=images, bytes=held)
    if attack is None:
        return cost
    return (cost + attack_cost(attack, images, classes=view.classes)).named(
        f"features under {attack.label}"
    )


def gather(  # noqa: PLR0913 - one call, and each option is independent of the others
    model: nn.Module | LinearHead,
    batches: Iterable[Batch],
    attack: Attack | None = None,
    *,
    seed: int = 0,
    head: str | None = None,
    engine: Engine | None = None,
    keep_images: bool = False,
    after_batch: Callable[[int], None] | None = None,
) -> Gathered:
    """Features and logits in eval mode, of the samples as they come or as an attack leaves them.

    Every sample is attacked, also one that is misclassified to begin with, and what the attack
    returns is taken whether it fools the model or not. The model is given back as it was.

    Args:
        model: the model, or the view of it.
        batches: (x, y, ids) on the model's device, without augmentation.
        attack: under its threat; None for the samples themselves.
        seed: of the attack's draws, see `attacked`.
        head: as for `LinearHead.of`.
        engine: how the attack's passes are made; features are always the plain model's.
        keep_images: keep the inputs too.
        after_batch: called with the number of samples done; a progress bar, or a stop.

    Raises:
        ArgumentError: no samples, no linear head, labels that the model cannot give.
    """
    view = LinearHead.of(model, head)
    count, size = count_of(batches), 0
    if keep_images and count and isinstance(batches, (list, tuple)):
        size = sum(batch.x.nbytes for batch in batches) // count
    cost = gather_cost(view, count or 1, attack, kept_bytes=size)
    say_for(count, cost)
    rows: list[list[Tensor]] = []
    forwards = backwards = 0
    with eval_mode(view.model), torch.no_grad():
        for x, y, ids in batches:
            check_device(x, view.model)
            if attack is not None:
                found = attacked(view.model, Batch(x, y, ids), attack, seed=seed, engine=engine)
                x = found.x_adv
                forwards += found.cost.forward_images
                backwards += found.cost.backward_images
            phi, logits = view.features_and_logits(x)
            check_logits(logits, x)
            check_labels(y, logits)
            forwards += len(y)
            kept = [x] if keep_images else []
            parts = [at_least_float32(phi), at_least_float32(logits), y, ids, *kept]
            rows.append([part.detach().cpu() for part in parts])
            if after_batch:
                after_batch(len(y))
    if not sum(len(row[2]) for row in rows):
        raise ArgumentError(describe("batches", "at least one sample", "none"))
    phi, logits, y, ids, *kept = (torch.cat(column) for column in zip(*rows, strict=True))
    held = sum(part.numel() * part.element_size() for part in (phi, logits, y, ids, *kept))
    spent = Cost(cost.what, forwards, backwards, bytes=held)
    return Gathered(phi, logits, y, ids, spent, kept[0] if kept else None)

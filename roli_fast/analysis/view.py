"""What a model makes of samples, clean or attacked: features, and logits by one linear head.

>>> seen = gather(model, batches, PGD(eps=8 / 255, steps=10))
>>> seen.features, seen.logits, seen.y
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from roli_fast.attacks import Attack
from roli_fast.data import Batch
from roli_fast.engine import Engine, Mergeable
from roli_fast.engine.input_gradient import check_device, check_labels, check_logits
from roli_fast.errors import ArgumentError, describe
from roli_fast.losses import at_least_float32
from roli_fast.models.classifier import find_head
from roli_fast.seeds import derived_generator


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Within, the model is in eval mode; afterwards every module's mode is what it was."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True, eq=False)
class LinearHead:
    """A model as f(x) = V phi(x) + b: the features phi are what its linear head is given.

    Made by `LinearHead.of`. Inputs are whatever the model takes: images (B, ...), tokens (B, L).

    Args:
        model: inputs -> logits (B, C); the logits are the head's output itself.
        name: of the head inside the model, "backbone.head" say; "" where the model is the head.
        layer: the head: weight V (C, D), bias b (C,) or None.
    """

    model: nn.Module
    name: str
    layer: nn.Linear

    @classmethod
    def of(cls, model: "nn.Module | LinearHead", head: str | None = None) -> "LinearHead":
        """The view of a model.

        Args:
            model: any network; its modes and weights are left alone. A view is taken as it is.
            head: module path of the head, "classifier.2" say; None finds it as `models.wrap` does.

        Raises:
            ArgumentError: no linear head, or several layers that might be it: they are listed.
        """
        if isinstance(model, LinearHead):
            return model if head is None else cls.of(model.model, head)
        if head is None:
            return cls(model, *find_head(model))
        layer = dict(model.named_modules(remove_duplicate=False)).get(head)
        if not isinstance(layer, nn.Linear) or isinstance(layer, Mergeable):
            got = f"'{head}', where {type(model).__name__} has a {type(layer).__name__}"
            raise ArgumentError(describe("head", "the path of a linear layer", got))
        return cls(model, head, layer)

    @property
    def classes(self) -> int:
        """C, the number of logits."""
        return self.layer.out_features

    @property
    def dimensions(self) -> int:
        """D, the number of features."""
        return self.layer.in_features

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features phi (B, D), exactly what the head is given, and logits (B, C); one forward.

        In the modes that the model is in; autograd and forward-mode tangents pass through.

        Args:
            x: inputs of the model, the batch in front.

        Raises:
            ArgumentError: the head is not run once on (B, D), or its output is not the model's.
        """
        seen: list[tuple[Tensor, Tensor]] = []

        def look(_layer: nn.Module, args: Any, options: Any, output: Tensor) -> None:
            seen.append((args[0] if args else options["input"], output))

        handle = self.layer.register_forward_hook(look, with_kwargs=True)
        try:
            logits = self.model(x)
        finally:
            handle.remove()
        shapes = [tuple(phi.shape) for phi, _ in seen]
        if shapes != [(len(x), self.dimensions)] or logits is not seen[0][1]:
            expected = f"a layer that is given ({len(x)}, {self.dimensions}) once a forward, and "
            expected += "whose output the model returns"
            got = f"'{self.name}', given {', '.join(map(str, shapes)) or 'nothing'}"
            fix = "Pool over tokens or pixels before the head, and return its output as it is."
            raise ArgumentError(describe("head", expected, got, fix))
        return seen[0][0], logits

    def features(self, x: Tensor) -> Tensor:
        """Features phi (B, D), as `features_and_logits`."""
        return self.features_and_logits(x)[0]

    def backbone(self, names: Sequence[str] | None = None) -> dict[str, nn.Parameter]:
        """The parameters that the features depend on, by name, in the model's order.

        Args:
            names: those of them to take, a tuning method's list say; the head's own, which such a
                list has too, are left out. None takes all.

        Raises:
            ArgumentError: an unknown name.
        """
        every = dict(self.model.named_parameters())
        if unknown := [name for name in names or () if name not in every]:
            expected = "names of the model's parameters"
            raise ArgumentError(describe("names", expected, ", ".join(unknown[:3])))
        head, chosen = set(self.layer.parameters()), every if names is None else set(names)
        return {name: p for name, p in every.items() if p not in head and name in chosen}


@dataclass(frozen=True, eq=False)
class Gathered:
    """What a model makes of N samples, on the CPU, in the order of the data.

    Args:
        features: phi (N, D), fp32 (fp64 of a model in fp64).
        logits: (N, C), likewise.
        y: labels (N,), int64.
        ids: sample ids (N,), int64.
        x: the model's inputs (N, ...), attacked where there was an attack; None unless kept.
    """

    features: Tensor = field(repr=False)
    logits: Tensor = field(repr=False)
    y: Tensor = field(repr=False)
    ids: Tensor = field(repr=False)
    x: Tensor | None = field(repr=False, default=None)

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, places: Sequence[int]) -> "Gathered":
        """Those of the samples at `places`."""
        kept = (self.features, self.logits, self.y, self.ids, self.x)
        return Gathered(*(None if own is None else own[list(places)] for own in kept))  # type: ignore[arg-type]


def attacked(
    model: nn.Module,
    batches: Iterable[Batch],
    attack: Attack | None,
    *,
    seed: int = 0,
    engine: Engine | None = None,
) -> Iterator[Batch]:
    """The batches with attack(x_i) in place of x_i, or as they are without an attack.

    The draws are those of `evaluate` at this seed: a sample's depend on seed, the attack's label
    and the sample's id alone.
    """
    for batch in batches:
        if attack is not None:
            x, y, ids = batch
            draws = derived_generator("evaluate", seed, attack.label, device=x.device)
            ids = ids.to(x.device)
            found = attack.run(model, x, y, draws, engine=engine, sample_ids=ids)
            batch = batch._replace(x=found.x_adv)
        yield batch


def counted(batches: Iterable[Batch], after_batch: Callable[[int], None] | None) -> Iterator[Batch]:
    """The batches; `after_batch` is called with the size of each once it is used."""
    for batch in batches:
        yield batch
        if after_batch:
            after_batch(len(batch.y))


def gather(
    model: nn.Module | LinearHead,
    batches: Iterable[Batch],
    attack: Attack | None = None,
    *,
    seed: int = 0,
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
        engine: how the attack's passes are made; features are always the plain model's.
        keep_images: keep the inputs too.
        after_batch: called with the number of samples done; a progress bar, or a stop.

    Raises:
        ArgumentError: no samples, no linear head, labels that the model cannot give.
    """
    view = LinearHead.of(model)
    rows: list[list[Tensor]] = []
    with eval_mode(view.model), torch.no_grad():
        seen = attacked(view.model, batches, attack, seed=seed, engine=engine)
        for x, y, ids in counted(seen, after_batch):
            check_device(x, view.model)
            phi, logits = view.features_and_logits(x)
            check_logits(logits, x)
            check_labels(y, logits)
            kept = [x] if keep_images else []
            parts = [at_least_float32(phi), at_least_float32(logits), y, ids, *kept]
            rows.append([part.detach().cpu() for part in parts])
    if not sum(len(row[2]) for row in rows):
        raise ArgumentError(describe("batches", "at least one sample", "none"))
    return Gathered(*(torch.cat(column) for column in zip(*rows, strict=True)))

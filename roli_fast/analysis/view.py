"""How an analysis sees a model: features, and one linear head from them to the logits."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from roli_fast.engine import Mergeable
from roli_fast.errors import ArgumentError, ArgumentTypeError, describe


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
            head: module path of the head, "classifier.2" say; None asks the model: a `Classifier`'s
                `head_name`, a timm network's `get_classifier()`, also where it is wrapped in
                modules that say nothing.

        Raises:
            ArgumentError: no linear head, or nothing that says which layer it is.
            ArgumentTypeError: the model is no module.
        """
        if isinstance(model, LinearHead):
            return model if head is None else cls.of(model.model, head)
        if not isinstance(model, nn.Module):
            got = type(model).__name__
            fix = "Give the module itself, not a function or a bound SearchModel around it."
            raise ArgumentTypeError(describe("model", "an nn.Module", got, fix))
        name = _name_of_head(model) if head is None else head
        try:
            layer = model.get_submodule(name)
        except AttributeError:
            raise ArgumentError(_no_head(model, f"no module '{name}'")) from None
        if not isinstance(layer, nn.Linear) or isinstance(layer, Mergeable):
            raise ArgumentError(_no_head(model, f"'{name}', a {type(layer).__name__}"))
        return cls(model, name, layer)

    @property
    def classes(self) -> int:
        """C, the number of logits."""
        return self.layer.out_features

    @property
    def dimensions(self) -> int:
        """D, the number of features."""
        return self.layer.in_features

    def features_and_logits(
        self, x: Tensor, weights: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features phi (B, D), exactly what the head is given, and logits (B, C); one forward.

        In the modes that the model is in; autograd and forward-mode tangents pass through.

        Args:
            x: inputs of the model, the batch in front.
            weights: parameters and buffers by name that take the place of the model's in this
                forward (`torch.func.functional_call`); names left out stay.

        Raises:
            ArgumentError: the head is not run once on (B, D), or its output is not the model's.
        """
        seen: list[tuple[Tensor, Tensor]] = []

        def look(_layer: nn.Module, args: Any, options: Any, output: Tensor) -> None:
            seen.append((args[0] if args else options["input"], output))

        handle = self.layer.register_forward_hook(look, with_kwargs=True)
        try:
            if weights is None:
                logits = self.model(x)
            else:
                logits = functional_call(self.model, dict(weights), (x,))
        finally:
            handle.remove()
        self._check(x, seen, logits)
        return seen[0][0], logits

    def features(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Features phi (B, D), as `features_and_logits`."""
        return self.features_and_logits(x, weights)[0]

    def backbone(self, names: Sequence[str] | None = None) -> dict[str, nn.Parameter]:
        """The parameters that the features depend on, by name, in the model's order.

        Args:
            names: those of them to take, a tuning method's list say; the head's own, which such a
                list has too, are left out. None takes all.

        Raises:
            ArgumentError: an unknown name, or a head that shares its weight with another layer, as
                an embedding does in language models.
        """
        self._check_own()
        every = dict(self.model.named_parameters())
        if unknown := [name for name in names or () if name not in every]:
            expected = "names of the model's parameters"
            fix = "model.named_parameters() lists them."
            raise ArgumentError(describe("names", expected, ", ".join(unknown[:3]), fix))
        head = set(self.layer.parameters())
        chosen = every if names is None else set(names)
        return {name: p for name, p in every.items() if p not in head and name in chosen}

    def _check_own(self) -> None:
        """A step of the head is no step of the features: neither may use the other's weights."""
        head, inside = set(self.layer.parameters()), set(self.layer.modules())
        for name, module in self.model.named_modules():
            if module not in inside and head & set(module.parameters(recurse=False)):
                got = f"'{self.name}', which shares a weight with '{name}'"
                raise ArgumentError(describe("head", "a head with weights of its own", got))

    def _check(self, x: Tensor, seen: list[tuple[Tensor, Tensor]], logits: object) -> None:
        if len(seen) != 1:
            got = f"'{self.name}', which ran {len(seen)} times in one forward"
            raise ArgumentError(describe("head", "a layer that runs once a forward", got))
        phi, output = seen[0]
        if phi.ndim != 2 or len(phi) != len(x):
            expected = f"a head on features ({len(x)}, {self.dimensions})"
            got = f"'{self.name}' on {tuple(phi.shape)}"
            fix = "Pool over tokens or pixels before the head."
            raise ArgumentError(describe("head", expected, got, fix))
        if logits is not output:
            got = f"'{self.name}', whose output the model changes or does not return"
            fix = "Give the module that returns the head's output itself, as a tensor."
            raise ArgumentError(describe("head", "the layer that gives the logits", got, fix))


def _name_of_head(model: nn.Module) -> str:
    """Asks the outermost module that knows; the model's own output is checked when it runs."""
    if isinstance(model, nn.Linear):
        return ""
    for path, module in model.named_modules():
        own = getattr(module, "head_name", None)
        if isinstance(own, str):
            return f"{path}.{own}" if path else own
        if callable(ask := getattr(module, "get_classifier", None)):
            head = ask()
            for name, part in model.named_modules():
                if part is head:
                    return name
            got = f"{type(module).__name__} with {type(head).__name__}"
            raise ArgumentError(_no_head(model, got))
    raise ArgumentError(_no_head(model, type(model).__name__))


def _no_head(model: nn.Module, got: str) -> str:
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    fix = "It has no nn.Linear at all."
    if linear:
        shown = ", ".join(repr(name) for name in linear[-5:])
        more = f", the last 5 of {len(linear)}" if len(linear) > 5 else ""
        fix = f"Name it: head='...'. Linear layers: {shown}{more}."
    return describe("model", "a model with one linear head", got, fix)

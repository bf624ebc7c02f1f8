"""AutoAttack's parts, alone or inside an evaluation: a table of their arguments over one class."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Generator, Tensor

from roli_fast import attacks as ours
from roli_fast.attacks.objective import choose
from roli_fast.attacks.passes import column
from roli_fast.compat.autoattack.other_utils import Logger
from roli_fast.compat.original_draws import with_original_draws
from roli_fast.compat.peers import UserAttributes, beside, clean_logits, constructor, our_norm
from roli_fast.compat.view import View
from roli_fast.engine import Engine, SearchModel, bound
from roli_fast.engine.input_gradient import Model
from roli_fast.errors import ArgumentError, describe
from roli_fast.threat import Bounds

if TYPE_CHECKING:
    from roli_fast.compat.autoattack.evaluation import AutoAttack

FIELDS = {
    **dict(n_iter="steps", n_restarts="restarts", loss="loss", eot_iter="eot", thr_decr="rho"),
    **dict(use_largereps="large_radius", n_target_classes="targets", n_queries="n_queries"),
    **dict(alpha_max="alpha_max", eta="eta", beta="beta", p_init="p_init"),
    **dict(rescale_schedule="rescale_schedule"),
}
"""AutoAttack's attributes -> our attacks' fields."""

RENAMED = {"rho": "thr_decr", "resc_schedule": "rescale_schedule"}
"""Arguments whose attributes have another name."""

USUAL_EPS = {"Linf": 0.3, "L2": 1.0, "L1": 5.0}
"""Of FAB with eps=None."""


class Component(UserAttributes):
    """An attack with the original's arguments, attributes and `perturb`.

    Attributes may be set between calls. In an AutoAttack's evaluation that one's seed takes the
    place of this one's. `topk`, `use_rs`, `loss_fn` and `is_tf_model` have no effect, as in the
    original. `verbose` logs what a call found. A `get_logits` that is overridden is what the attack
    sees.
    """

    rng = "official"
    bounds: Bounds = (0.0, 1.0)
    use_rs = True
    logger: Logger | None = None
    owner: "AutoAttack | None" = None
    attack_class: ClassVar[type[ours.Attack]]

    if TYPE_CHECKING:  # the arguments and attributes of each attack

        def __init__(self, predict: Model, *args: Any, **named: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...

    def _begin(self, predict: Model, **given: Any) -> None:
        our_norm(given["norm"])
        self.model = predict
        for name, value in given.items():
            setattr(self, RENAMED.get(name, name), value)
        self._built = True

    predict = property(lambda self: self.model, lambda self, model: setattr(self, "model", model))
    """Another name of `model`."""

    def get_logits(self, x: Tensor) -> Tensor:
        """Logits (B, C). Overridden, it is what the attack sees."""
        return self.model(x)

    def searched(self) -> SearchModel:
        """The model as the attack sees it."""
        engine = Engine() if self.owner is None else self.owner.engine
        for one in (self, self.owner):
            if one is not None and one.overrides("get_logits"):
                return engine.bind(View(bound(self.model).model, one.get_logits))
        return engine.bind(self.model)

    def attack(self, seed: int) -> ours.Attack:
        """The attack behind it, with the draws of `seed`."""
        if self.eps is None:
            raise ArgumentError(describe("eps", "a radius", None, "Write 8/255 for pixel units."))
        own = {to: getattr(self, name) for name, to in FIELDS.items() if hasattr(self, name)}
        own |= dict(norm=our_norm(self.norm), eps=self.eps, bounds=self.bounds)
        attack = self._build(own)
        return with_original_draws(attack, seed) if self.rng == "official" else attack

    def _build(self, fields: dict[str, Any]) -> ours.Attack:
        return self.attack_class(**fields)

    def perturb(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Images like `x`: what fools the model within eps, the others as they were.

        Args:
            x: images (B, ...) inside the bounds.
            y: labels (B,); None takes what the model predicts.
        """
        return self._perturb(x, y)

    def _perturb(
        self, x: Tensor, y: Tensor | None, target: Tensor | None = None, **changed: Any
    ) -> Tensor:
        x, model = x.to(self.device), self.searched()
        y = clean_logits(model, x).argmax(1) if y is None else y.to(x.device)
        seed = int(time.time() if self.seed is None else self.seed)
        generator = Generator(x.device).manual_seed(seed)
        attack: Any = replace(self.attack(seed), **changed)  # type: ignore[type-var]
        found = attack.run(model, x, y, generator, target=target)
        if found.fooled is None:
            return found.x_adv
        if self.verbose:
            line = f"{attack.label}: fooled {int(found.fooled.sum())} of {len(x)}"
            (self.logger or Logger(None)).log(line)
        return torch.where(column(found.fooled, x), found.x_adv, x)


Kind = TypeVar("Kind", bound=Component)

_APGD = dict(n_iter=100, norm="Linf", n_restarts=1, eps=None, seed=0)
_MORE = dict(verbose=False, device=None, use_largereps=False, is_tf_model=False, logger=None)


def called_with(more: Mapping[str, Any]) -> Callable[[type[Kind]], type[Kind]]:
    """Give a class the constructor (predict, **more)."""

    def finished(kind: type[Kind]) -> type[Kind]:
        kind.__init__ = constructor(kind._begin, "predict", more)
        return kind

    return finished


@called_with(_APGD | dict(loss="ce", eot_iter=1, rho=0.75, topk=None) | _MORE)
class APGDAttack(Component):
    """APGD; `loss` is "ce" or "dlr"."""

    attack_class = ours.APGD

    def perturb(
        self,
        x: Tensor,
        y: Tensor | None = None,
        best_loss: bool = False,
        x_init: Tensor | None = None,
    ) -> Tensor:
        """With `best_loss` the images of highest loss, of all. `x_init` has no effect, as in the
        original."""
        return self._perturb(x, y, keep="best" if best_loss else "adversarial")


@called_with(_APGD | dict(eot_iter=1, rho=0.75, topk=None, n_target_classes=9) | _MORE)
class APGDAttack_targeted(APGDAttack):  # noqa: N801 - the original's
    """APGD towards the likeliest wrong classes; `loss` is "dlr-targeted" or "ce-targeted"."""

    loss = "dlr-targeted"

    def _build(self, fields: dict[str, Any]) -> ours.Attack:
        fields["loss"] = self.loss.removesuffix("-targeted")
        return ours.APGDT(**fields)

    def perturb(  # type: ignore[override]
        self, x: Tensor, y: Tensor | None = None, x_init: Tensor | None = None
    ) -> Tensor:
        """As that of APGD."""
        return super().perturb(x, y)


@called_with(
    dict(norm="Linf", n_restarts=1, n_iter=100, eps=None, alpha_max=0.1, eta=1.05, beta=0.9)
    | dict(loss_fn=None, verbose=False, seed=0, targeted=False, device=None)
    | dict(n_target_classes=9)
)
class FABAttack_PT(Component):  # noqa: N801
    """FAB; `targeted` goes towards the `n_target_classes` likeliest wrong classes in turn."""

    def _begin(self, predict: Model, **given: Any) -> None:
        if given["eps"] is None:
            given["eps"] = USUAL_EPS.get(given["norm"])
        super()._begin(predict, **given)

    def _build(self, fields: dict[str, Any]) -> ours.Attack:
        if self.targeted:
            return ours.FABT(minimal=False, **fields)
        del fields["targets"]
        return ours.FAB(minimal=False, **fields)


@called_with(
    dict(norm="Linf", n_queries=5000, eps=None, p_init=0.8, n_restarts=1, seed=0)
    | dict(verbose=False, targeted=False, loss="margin", resc_schedule=True, device=None)
)
class SquareAttack(Component):
    """Square; `loss` is "margin" or "ce"."""

    attack_class = ours.Square

    def perturb(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """With `targeted`, `y` are the classes to go towards; None draws wrong ones."""
        if not self.targeted:
            return self._perturb(x, y)
        x = x.to(self.device)
        if y is None:
            clean = clean_logits(self.searched(), x)
            ids = torch.arange(len(x), device=x.device)
            y = choose("random", clean, clean.argmax(1), None, ids)
        target = y.to(x.device)
        return self._perturb(x, beside(target, target), target)

"""The table of torchattacks' attacks: how each is called there, and which of ours does it."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader

from roli_fast import attacks as ours
from roli_fast import ops
from roli_fast.attacks import AttackResult
from roli_fast.attacks.auto_attack import VERSIONS
from roli_fast.attacks.base import Ball, Radius
from roli_fast.attacks.ensemble import total
from roli_fast.attacks.fab import Planes, TargetPlane
from roli_fast.attacks.objective import is_right
from roli_fast.attacks.passes import Samples
from roli_fast.compat.autoattack.components import FIELDS as OFFICIAL_FIELDS
from roli_fast.compat.autoattack.components import RENAMED, USUAL_EPS
from roli_fast.compat.criterion import CriterionPGD
from roli_fast.compat.original_draws import with_original_draws
from roli_fast.compat.peers import beside, constructor, our_norm
from roli_fast.compat.torchattacks.attack import Attack, logger
from roli_fast.compat.view import View
from roli_fast.engine import InputGradient, bound
from roli_fast.engine.input_gradient import Model
from roli_fast.errors import ArgumentError, ArgumentTypeError, describe

FIELDS = OFFICIAL_FIELDS | {
    **dict(alpha="step_size", steps="steps", random_start="random_start", decay="momentum"),
    "version": "version",
}
"""torchattacks' attributes -> our attacks' fields."""


@dataclass(frozen=True)
class Row:
    """An attack of torchattacks.

    Args:
        arguments: of its constructor, after the model, with their defaults.
        doc: what the class says of itself.
        kind: ours.
        fixed: fields of ours that no argument stands for.
        base: the class that reads what is special.
        aims: whether it has targets.
    """

    arguments: dict[str, Any]
    doc: str
    kind: Callable[..., ours.Attack] = ours.PGD
    fixed: dict[str, Any] = field(default_factory=dict)
    base: "type[Listed] | None" = None
    aims: bool = True


class Listed(Attack):
    """An attack of the table. `eps` is a number or one a sample (B,)."""

    row: ClassVar[Row]
    name: ClassVar[str]

    def _begin(self, model: Model, **given: Any) -> None:
        given = {RENAMED.get(name, name): value for name, value in given.items()}
        attributes = self._attributes(given)
        Attack.__init__(self, self.name, model, **attributes)
        vars(self).update(_arguments=tuple(attributes), _told=set())
        if self.row.aims:
            self.supported_mode = ["default", "targeted"]

    def _attributes(self, given: dict[str, Any]) -> dict[str, Any]:
        """The attributes that stand for a constructor's arguments."""
        return given

    def fields(self) -> dict[str, Any]:
        """Ours, but for eps."""
        own = {FIELDS[name]: getattr(self, name) for name in self._arguments if name in FIELDS}
        if "random_start" in own:
            own["random_start"] = bool(own["random_start"])
        return self.row.fixed | own

    def build(self, eps: float, target: Tensor | None = None) -> ours.Attack:
        """The attack behind it."""
        return self.row.kind(**self.fields(), eps=eps)

    def search(
        self, images: Tensor, labels: Tensor | None, sample_ids: Tensor | None = None
    ) -> AttackResult:
        """One call."""
        labels = need(labels)
        eps, radius = radius_of(self.eps, images)
        target = self.get_target_label(images, labels) if self.targeted else None
        options: dict[str, Any] = dict(sample_ids=sample_ids, eps=radius)
        attack = self._drawn(self.build(eps, target))
        if target is not None and not isinstance(attack, _AimedFAB):
            labels, options["target"] = beside(labels, target), target
        result = attack.run(self.view(), images, labels, self._draws(images), **options)
        self._report(attack, result, len(images))
        return result

    def _drawn(self, attack: ours.Attack) -> ours.Attack:
        """The attack with the draws that are asked for."""
        return attack

    def _draws(self, images: Tensor) -> Generator | None:
        return self.generator

    def _report(self, attack: ours.Attack, result: AttackResult, count: int) -> None:
        """Log what it found where it is verbose; once, what its model does not allow."""
        if vars(self).get("verbose") and result.fooled is not None:
            cost = result.cost
            text = "%s: %d of %d images fool, %d forwards and %d backwards"
            shown = (int(result.fooled.sum()), count, cost.forwards, cost.backwards)
            logger.info(text, attack.label, *shown)
        for note in result.notes:
            if note not in self._told:
                self._told.add(note)
                logger.warning("%s: %s", self.attack, note)


class _BIM(Listed):
    def _attributes(self, given: dict[str, Any]) -> dict[str, Any]:
        eps = given["eps"]
        if given["steps"] == 0 and not isinstance(eps, Tensor):
            given["steps"] = int(min(eps * 255 + 4, 1.25 * eps * 255))
        return given


class _PGDL2(Listed):
    def fields(self) -> dict[str, Any]:
        if not 0 <= self.eps_for_division <= 1e-6:
            got = repr(self.eps_for_division)
            fix = "It has no effect here: a zero gradient makes no step."
            raise ArgumentError(describe("eps_for_division", "a number in [0, 1e-6]", got, fix))
        return super().fields()


class _TPGD(Listed):
    def search(
        self, images: Tensor, labels: Tensor | None, sample_ids: Tensor | None = None
    ) -> AttackResult:
        """Labels play no part."""
        anything = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        return super().search(images, anything, sample_ids)


class _UPGD(Listed):
    unread = Attack.unread | {"get_loss", "ce_loss", "dlr_loss", "margin_loss"}

    def fields(self) -> dict[str, Any]:
        if callable(self.loss):
            return super().fields() | {"loss": "ce"}  # in name alone
        if self.loss not in ("ce", "dlr", "margin"):
            expected = "'ce', 'dlr', 'margin' or a callable"
            raise ArgumentError(describe("loss", expected, repr(self.loss)))
        if self.loss == "dlr" and self.attack_mode == "targeted(label)":
            fix = "The dlr of a target needs the label too: take a function as the mode."
            raise ArgumentError(describe("loss", "'ce' or 'margin'", "'dlr'", fix))
        return super().fields()

    def search(
        self, images: Tensor, labels: Tensor | None, sample_ids: Tensor | None = None
    ) -> AttackResult:
        """A loss that is a callable sees images, labels and targets (None without), and its value
        of all images is what the steps raise."""
        loss: Any = self.loss
        if not callable(loss):
            return super().search(images, labels, sample_ids)
        target = self.get_target_label(images, need(labels)) if self.targeted else None

        def of_all(x: Tensor) -> Tensor:
            value: Any = loss(x, labels, target)
            return (value.sum() / len(x)).expand(len(x), 1)

        eps, radius = radius_of(self.eps, images)
        attack = CriterionPGD(**self.fields(), eps=eps, criterion=lambda value, _: value[:, 0])
        model = View(bound(self.model).model, of_all, self._modes)
        one = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        return attack.run(model, images, one, self.generator, sample_ids=sample_ids, eps=radius)


class Seeded(Listed):
    """An attack with a seed, which draws the same at each call; None takes `generator`."""

    unread = Attack.unread | {
        *("perturb", "attack_single_run", "attack_single_run_targeted", "check_oscillation"),
        *("check_shape", "dlr_loss", "dlr_loss_targeted", "target_class", "_get_predicted_label"),
        *("get_diff_logits_grads_batch", "get_diff_logits_grads_batch_targeted", "get_seed"),
        *("eta_rectangles", "init_hyperparam", "lp_norm", "margin_and_loss", "normalize_delta"),
        *("p_selection", "random_choice", "random_int", "_autoattack"),
    }
    rng: Literal["native", "official"] = "native"
    """ "official" repeats the original's draws, which depend on the batch."""

    def _attributes(self, given: dict[str, Any]) -> dict[str, Any]:
        our_norm(given["norm"])
        return given

    def fields(self) -> dict[str, Any]:
        return super().fields() | {"norm": our_norm(self.norm)}

    def _drawn(self, attack: ours.Attack) -> ours.Attack:
        if self.rng != "official":
            return attack
        if self.seed is None:
            raise ArgumentError(describe("seed", "a seed with rng='official'", None))
        return with_original_draws(attack, self.seed)

    def _draws(self, images: Tensor) -> Generator | None:
        if self.seed is None:
            return self.generator
        return Generator(images.device).manual_seed(self.seed)


class _Square(Seeded):
    unread = Seeded.unread | {"eta"}


class _Targets(Seeded):
    """APGDT and FAB: n_classes - 1 targets, all that the model has at most."""

    def _attributes(self, given: dict[str, Any]) -> dict[str, Any]:
        given = super()._attributes(given)
        if "eps" in given and given["eps"] is None:
            given["eps"] = USUAL_EPS[given["norm"]]
        return given | {"n_target_classes": given.pop("n_classes") - 1}


class _FAB(_Targets):
    def build(self, eps: float, target: Tensor | None = None) -> ours.Attack:
        fields: dict[str, Any] = self.fields() | {"eps": eps}
        if self.multi_targeted:
            return ours.FABT(**fields)
        del fields["targets"]
        return ours.FAB(**fields) if target is None else _AimedFAB(**fields, target=target)


class _AutoAttack(Seeded):
    def _attributes(self, given: dict[str, Any]) -> dict[str, Any]:
        if (version := given["version"]) not in VERSIONS:
            raise ArgumentError(describe("version", " or ".join(map(repr, VERSIONS)), version))
        return super()._attributes(given)

    def build(self, eps: float, target: Tensor | None = None) -> ours.Attack:
        kind = self.row.kind
        if self.n_classes != 10:
            kind = partial(_TargetsAutoAttack, targets=self.n_classes - 1)
        return kind(**self.fields(), eps=eps)

    def _report(self, attack: ours.Attack, result: AttackResult, count: int) -> None:
        """It warns by itself; what else it notes is how many images each part fooled."""
        for note in result.notes:
            logger.log(logging.INFO if self.verbose else logging.DEBUG, "AutoAttack: %s", note)


@dataclass(frozen=True)
class _TradesPGD(ours.PGD):
    """PGD that starts beside the image, where the KL's gradient is not zero."""

    def _start(self, samples: Samples, ball: Ball, generator: Generator | None) -> Tensor:
        """Every entry moves by 0.001 (standard deviation), as in TRADES.

        Uniform in an l2 ball of D dimensions, whose entries are Gaussian as nearly as matters.
        """
        radius = 0.001 * math.sqrt(samples.x[:1].numel() + 2)
        draws: Any = dict(generator=generator, sample_ids=samples.ids)
        return ops.l2_random_start(samples.x, eps=radius, bounds=ball.bounds, **draws)


@dataclass(frozen=True, eq=False)
class _AimedFAB(ours.FAB):
    """FAB towards one class a sample, `target` (B,); any other than the label counts."""

    target: Tensor | None = None

    def planes(self, logits: Tensor, y: Tensor) -> Iterator[Planes]:
        assert self.target is not None
        yield TargetPlane(self.target)


@dataclass(frozen=True)
class _TargetsAutoAttack(ours.AutoAttack):
    """AutoAttack with so many targets of APGD-T and FAB-T."""

    targets: int = 9

    def part(self, name: str, more: dict[str, Any]) -> ours.Attack:
        if name in ("apgd-t", "fab-t"):
            more = more | {"targets": self.targets}
        return super().part(name, more)


def radius_of(eps: Radius, images: Tensor) -> tuple[float, Tensor | None]:
    """The field and the argument of a call that stand for `eps`: a number, 0 too, or (B,)."""
    if isinstance(eps, Tensor):
        return 1.0, eps.to(images.device)
    if eps == 0:
        return 1.0, torch.zeros(len(images), device=images.device)
    return eps, None


def need(labels: Tensor | None) -> Tensor:
    """Labels, or an error that says they are missing."""
    if labels is None:
        raise ArgumentTypeError(describe("labels", "labels (B,), int64", None))
    return labels


_LINF = dict(norm="linf")
_STEPS = dict(eps=8 / 255, alpha=2 / 255, steps=10)
_NORM = dict(norm="Linf", eps=8 / 255)

TABLE = {
    "FGSM": Row(
        dict(eps=8 / 255),
        "One step of length eps.",
        fixed=_LINF | dict(step_size=1.0, steps=1, random_start=False),  # projected back
    ),
    "BIM": Row(
        _STEPS,
        "PGD from the image itself; `steps=0` takes the number that the paper has for eps.",
        fixed=_LINF | dict(random_start=False),
        base=_BIM,
    ),
    "FFGSM": Row(
        dict(eps=8 / 255, alpha=10 / 255),
        "FGSM from a random start, projected back.",
        fixed=_LINF | dict(steps=1),
    ),
    "PGD": Row(_STEPS | dict(random_start=True), "PGD in linf.", fixed=_LINF),
    "EOTPGD": Row(
        _STEPS | dict(eot_iter=2, random_start=True),
        "PGD whose gradients are means of `eot_iter` passes.",
        fixed=_LINF,
    ),
    "PGDL2": Row(
        dict(eps=1.0, alpha=0.2, steps=10, random_start=True, eps_for_division=1e-10),
        "PGD in l2. `eps_for_division` has no effect: a zero gradient makes no step here.",
        fixed=dict(norm="l2"),
        base=_PGDL2,
    ),
    "MIFGSM": Row(
        _STEPS | dict(decay=1.0),
        "PGD with momentum, from the image itself.",
        fixed=_LINF | dict(random_start=False),
    ),
    "UPGD": Row(
        _STEPS | dict(random_start=False, loss="ce", decay=1.0, eot_iter=1),
        'PGD with momentum, EOT and loss "ce", "dlr", "margin" or a callable (images, labels, '
        "targets) -> the batch's loss.",
        fixed=_LINF,
        base=_UPGD,
    ),
    "TPGD": Row(
        _STEPS,
        "TRADES' attack: away from the clean logits in KL. It needs no labels.",
        _TradesPGD,
        fixed=_LINF | dict(loss="kl"),
        base=_TPGD,
        aims=False,
    ),
    "APGD": Row(
        _NORM
        | dict(steps=10, n_restarts=1, seed=0, loss="ce", eot_iter=1, rho=0.75, verbose=False),
        'APGD on "ce" or "dlr" (or "margin"). `steps` is 10 here; AutoAttack has 100.',
        ours.APGD,
        base=Seeded,
        aims=False,
    ),
    "APGDT": Row(
        _NORM
        | dict(steps=10, n_restarts=1, seed=0, eot_iter=1, rho=0.75, verbose=False, n_classes=10),
        "APGD-T towards the n_classes - 1 likeliest wrong classes, all that there are at most.",
        ours.APGDT,
        base=_Targets,
        aims=False,
    ),
    "FAB": Row(
        _NORM
        | dict(steps=10, n_restarts=1, alpha_max=0.1, eta=1.05, beta=0.9, verbose=False, seed=0)
        | dict(multi_targeted=False, n_classes=10),
        "FAB, or FAB-T with `multi_targeted`, which alone looks at `n_classes`. eps=None takes "
        "0.3, 1 or 5 in Linf, L2 or L1. A target is the class that it goes towards; any "
        "misclassification counts.",
        base=_FAB,
    ),
    "Square": Row(
        _NORM
        | dict(n_queries=5000, n_restarts=1, p_init=0.8, loss="margin", resc_schedule=True)
        | dict(seed=0, verbose=False),
        "Square attack.",
        ours.Square,
        base=_Square,
    ),
    "AutoAttack": Row(
        _NORM | dict(version="standard", n_classes=10, seed=None, verbose=False),
        "AutoAttack with the authors' 100 steps and 5,000 queries, version standard, plus or rand. "
        "`n_classes` other than 10 gives APGD-T and FAB-T n_classes - 1 targets, as theirs. "
        "seed=None draws anew at each call.",
        ours.AutoAttack,
        base=_AutoAttack,
        aims=False,
    ),
}
"""torchattacks' name -> how it is called and what does it."""


def made(name: str) -> type[Listed]:
    """The class of a row."""
    row = TABLE[name]
    members = dict(
        __init__=constructor(Listed._begin, "model", row.arguments),
        __doc__=row.doc,
        __module__=f"{__package__}.attacks.{name.lower()}",
        row=row,
        name=name,
    )
    kind: Any = type(name, (row.base or Listed,), members)
    return kind


class MultiAttack(Attack):
    """Each attack in turn, on the images that those before left right.

    Args:
        attacks: two or more, on one and the same model.
        verbose: log how many images are still right after each.
    """

    unread = Attack.unread | {
        *("check_validity", "_accumulate_multi_atk_records", "_multi_atk_records"),
        *("_clear_multi_atk_records", "_covert_to_success_rates", "_return_sr_record"),
        "_update_multi_atk_records",
    }

    def __init__(self, attacks: Sequence[Attack], verbose: bool = False) -> None:
        if len(attacks) < 2:
            raise ArgumentError(describe("attacks", "two attacks or more", len(attacks)))
        if len({id(attack.model) for attack in attacks}) != 1:
            fix = "Build them from the same object."
            raise ArgumentError(describe("attacks", "attacks on one model", "several models", fix))
        super().__init__("MultiAttack", attacks[0].model, attacks=attacks, verbose=verbose)
        self.device = attacks[0].device
        vars(self)["_left"] = [0] * (len(attacks) + 1)  # images, and right ones after each, of save

    def search(
        self, images: Tensor, labels: Tensor | None, sample_ids: Tensor | None = None
    ) -> AttackResult:
        """In the form of the inputs, where the parts un-normalise for themselves."""
        labels = need(labels)
        ids = torch.arange(len(images), device=images.device) if sample_ids is None else sample_ids
        found, left = images.clone(), torch.arange(len(images), device=images.device)
        costs = []
        self._left[0] += len(images)
        for number, attack in enumerate(self.attacks, start=1):
            if attack.overrides("__call__", Attack):
                moved, fooled = attack(images[left], labels[left]), None
            else:
                result = attack.run(images[left], labels[left], ids[left])
                moved, fooled = attack.in_form(result.x_adv), result.fooled
                costs.append(result.cost)
            if fooled is None or not self._has_the_flags_of(attack):
                with InputGradient(self.view(eval_mode=True)) as engine:
                    logits = engine.evaluate(moved, labels[left])[1]
                fooled = ~is_right(logits, labels[left])
                costs.append(engine.cost)
            found[left[fooled]] = moved[fooled]
            left = left[~fooled]
            self._left[number] += len(left)
            if self.verbose:
                shown = (attack.attack, len(left), len(images))
                logger.info("after %s %d of %d images are right", *shown)
            if len(left) == 0:
                break
        flags = torch.ones(len(images), dtype=torch.bool, device=images.device)
        flags[left] = False
        return AttackResult(found, total(costs), flags)

    def _has_the_flags_of(self, attack: Attack) -> bool:
        """Whether an image that fools the part fools this attack's own model; those of a target
        say whether that was reached."""
        judges = any(one.overrides("get_logits", Attack) for one in (self, attack))
        return not attack.targeted and attack.model is self.model and not judges

    def save(  # type: ignore[override]  # noqa: PLR0913, PLR0917 - torchattacks'
        self,
        data_loader: DataLoader[Any],
        save_path: str | None = None,
        verbose: bool = True,
        return_verbose: bool = False,
        save_predictions: bool = False,
        save_clean_images: bool = False,
    ) -> tuple[float, list[float], float, float] | None:
        """As that of one attack, with the share of fooled images after each part, in percent,
        behind the robust accuracy."""
        self._left[:] = [0] * len(self._left)
        options = (verbose, True, save_predictions, save_clean_images)
        numbers = super().save(data_loader, save_path, *options)
        assert numbers is not None
        count, *left = self._left
        rates = [100 * (1 - right / count) if count else float("nan") for right in left]
        return (numbers[0], rates, *numbers[1:]) if return_verbose else None

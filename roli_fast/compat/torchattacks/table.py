"""The table of torchattacks' attacks: how each is called there, and which of ours does it."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader

from roli_fast import attacks as ours
from roli_fast import ops
from roli_fast.attacks.base import Ball
from roli_fast.attacks.fab import Planes, TargetPlane
from roli_fast.attacks.passes import Samples
from roli_fast.compat.autoattack.components import FIELDS as OFFICIAL_FIELDS
from roli_fast.compat.autoattack.components import RENAMED, USUAL_EPS
from roli_fast.compat.original_draws import with_original_draws
from roli_fast.compat.peers import beside, constructor, our_norm
from roli_fast.compat.torchattacks.attack import Attack, logger
from roli_fast.compat.view import View
from roli_fast.engine import bound
from roli_fast.engine.input_gradient import Model
from roli_fast.errors import ArgumentError, describe

FIELDS = OFFICIAL_FIELDS | {
    **dict(alpha="step_size", steps="steps", random_start="random_start", decay="momentum"),
    "version": "version",
    **dict(diversity_prob="diversity", resize_rate="resize", len_kernel="kernel", m="scales"),
    "N": "neighbours",
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
        super().__init__(self.name, model)
        given = {RENAMED.get(name, name): value for name, value in given.items()}
        attributes = self._attributes(given)
        vars(self).update(attributes, _fields=FIELDS.keys() & attributes)
        if self.row.aims:
            self.supported_mode = ["default", "targeted"]
        self._built = True

    def _attributes(self, given: dict[str, Any]) -> dict[str, Any]:
        """The attributes that stand for a constructor's arguments."""
        return given

    def fields(self) -> dict[str, Any]:
        """Ours, but for eps, which a call is given."""
        return self.row.fixed | {FIELDS[name]: getattr(self, name) for name in self._fields}

    def build(self, target: Tensor | None = None) -> ours.Attack:
        """The attack behind it."""
        return self.row.kind(**self.fields())

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The search itself."""
        target = self.get_target_label(inputs, labels) if self.targeted else None
        attack = self.build(target)
        options = self._options(inputs)
        if target is not None and not isinstance(attack, _AimedFAB):
            assert labels is not None
            labels, options["target"] = beside(labels, target), target
        found = self._drawn(attack).run(self.view(), inputs, labels, **options)  # type: ignore[arg-type]
        verbose = vars(self).get("verbose", True)
        for note in found.notes:
            logger.log(logging.INFO if verbose else logging.DEBUG, "%s: %s", self.attack, note)
        if verbose and found.fooled is not None:
            shown = (attack.label, int(found.fooled.sum()), len(inputs))
            logger.info("%s: %d of %d images fool", *shown)
        return found.x_adv

    def _options(self, inputs: Tensor) -> dict[str, Any]:
        eps = self.eps.to(inputs.device) if isinstance(self.eps, Tensor) else self.eps
        return {"eps": eps, "generator": self.generator}

    def _drawn(self, attack: ours.Attack) -> ours.Attack:
        """The attack with the draws that are asked for."""
        return attack


class _BIM(Listed):
    def _attributes(self, given: dict[str, Any]) -> dict[str, Any]:
        eps = given["eps"]
        if given["steps"] == 0:
            given["steps"] = int(min(eps * 255 + 4, 1.25 * eps * 255))
        return given


class _TPGD(Listed):
    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """Labels play no part."""
        return super().forward(inputs, _nothing(inputs))


class _UPGD(Listed):
    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """A loss that is a callable sees images, labels and targets (None without), and its value
        of all images is what the steps raise."""
        loss: Any = self.loss
        if not callable(loss):
            return super().forward(inputs, labels)
        target = self.get_target_label(inputs, labels) if self.targeted else None

        def of_all(x: Tensor) -> Tensor:
            value: Any = loss(x, labels, target)
            return (value.sum() / len(x)).expand(len(x), 1)

        fields: dict[str, Any] = self.fields() | {"loss": lambda value, _: value[:, 0]}
        attack = ours.PGD(**fields)
        view = View(bound(self.model).model, of_all, self._modes)
        return attack(view, inputs, _nothing(inputs), **self._options(inputs))


class _TIFGSM(Listed):
    def _attributes(self, given: dict[str, Any]) -> dict[str, Any]:
        for name, only in (("kernel_name", "gaussian"), ("nsig", 3)):
            if given[name] != only:
                raise ArgumentError(describe(name, repr(only), repr(given[name])))
        return given


class _Neighbours(Listed):
    """VMI-FGSM and VNI-FGSM, whose beta is a width."""

    def fields(self) -> dict[str, Any]:
        found = super().fields()
        return found | {"width": found.pop("beta")}


class _Jitter(Listed):
    def build(self, target: Tensor | None = None) -> ours.Attack:
        sign = 1 if target is None else -1

        def loss(logits: Tensor, y: Tensor) -> Tensor:
            """Mean squared error of softmax(scale z / max |z|) + noise, ibid. equation 5."""
            z = self.scale * logits / logits.abs().amax(1, keepdim=True)
            noise = self.std * _normal(z, self.generator)
            one_hot = nn.functional.one_hot(y, z.shape[1])
            return sign * (z.softmax(1) + noise - one_hot).square().mean(1)

        return ours.PGD(**self.fields(), loss=loss)

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """What it goes towards are its labels."""
        target = self.get_target_label(inputs, labels) if self.targeted else None
        labels = labels if target is None else target
        assert labels is not None
        return self.build(target)(self.view(), inputs, labels, **self._options(inputs))


class _Minimal(Listed):
    def fields(self) -> dict[str, Any]:
        given = {n: getattr(self, n) for n in self.row.arguments}
        given |= {"learning_rate": given.pop("lr")} if "lr" in given else {}
        return self.row.fixed | given

    def _options(self, inputs: Tensor) -> dict[str, Any]:
        """The ball is all that the box has."""
        return {"generator": self.generator, "eps": math.sqrt(max(inputs[0].numel(), 1))}


class _VANILA(Listed):
    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """A copy of the images."""
        return inputs.clone()


class _GN(Listed):
    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """The images with Gaussian noise, in [0, 1]."""
        return (inputs + self.std * _normal(inputs, self.generator)).clamp(0, 1)


def _normal(like: Tensor, generator: Generator | None) -> Tensor:
    """Standard normal numbers by the generator, wherever it is."""
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=device).to(like)


def _nothing(inputs: Tensor) -> Tensor:
    """Labels that play no part."""
    return torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device)


class Seeded(Listed):
    """An attack with a seed, which draws the same at each call; None takes `generator`."""

    rng: Literal["native", "official"] = "native"
    """ "official" repeats the original's draws, which depend on the batch."""

    def _attributes(self, given: dict[str, Any]) -> dict[str, Any]:
        our_norm(given["norm"])
        return given

    def fields(self) -> dict[str, Any]:
        return super().fields() | {"norm": our_norm(self.norm)}

    def _options(self, inputs: Tensor) -> dict[str, Any]:
        options = super()._options(inputs)
        if self.seed is not None:
            options["generator"] = Generator(inputs.device).manual_seed(self.seed)
        return options

    def _drawn(self, attack: ours.Attack) -> ours.Attack:
        return with_original_draws(attack, self.seed) if self.rng == "official" else attack


class _Targets(Seeded):
    """APGDT and FAB: n_classes - 1 targets, all that the model has at most."""

    def _attributes(self, given: dict[str, Any]) -> dict[str, Any]:
        given = super()._attributes(given)
        if given["eps"] is None:
            given["eps"] = USUAL_EPS[given["norm"]]
        return given | {"n_target_classes": given.pop("n_classes") - 1}


class _FAB(_Targets):
    def build(self, target: Tensor | None = None) -> ours.Attack:
        fields = self.fields()
        if self.multi_targeted:
            return ours.FABT(**fields)
        del fields["targets"]
        return ours.FAB(**fields) if target is None else _AimedFAB(**fields, target=target)


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


@dataclass(frozen=True)
class _SignStart(ours.PGD):
    """PGD that starts a step away from the image, in a random direction of signs."""

    def _start(self, samples: Samples, ball: Ball, generator: Generator | None) -> Tensor:
        draws: Any = dict(generator=generator, sample_ids=samples.ids)
        zeros = torch.zeros_like(samples.x)
        signs = ops.linf_random_start(zeros, eps=1.0, bounds=(-1.0, 1.0), **draws).sign()
        x_adv = samples.x.clone()
        size = {"eps": samples.eps, "step_size": self.step_size or samples.eps / 4}
        ball.norm.step_(x_adv, signs, samples.x, **size, bounds=ball.bounds)
        return x_adv


@dataclass(frozen=True, eq=False)
class _AimedFAB(ours.FAB):
    """FAB towards one class a sample, `target` (B,); any other than the label counts."""

    target: Tensor | None = None

    def planes(self, logits: Tensor, y: Tensor) -> Iterator[Planes]:
        assert self.target is not None
        yield TargetPlane(self.target)


_LINF = dict(norm="linf")
_STEPS = dict(eps=8 / 255, alpha=2 / 255, steps=10)
_NORM = dict(norm="Linf", eps=8 / 255)
_ANYWHERE = dict(norm="l2")
_DIVERSE = dict(resize_rate=0.9, diversity_prob=0.5, random_start=False)
_MOMENTUM = _LINF | dict(random_start=False, diversity=0.0)

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
        "PGD in l2. `eps_for_division` has no effect.",
        fixed=dict(norm="l2"),
    ),
    "MIFGSM": Row(
        _STEPS | dict(decay=1.0),
        "PGD with momentum, from the image itself.",
        fixed=_LINF | dict(random_start=False),
    ),
    "DIFGSM": Row(
        _STEPS | dict(decay=0.0) | _DIVERSE,
        "PGD through scaled and padded images, each of its own size.",
        ours.Transfer,
        fixed=_LINF,
    ),
    "TIFGSM": Row(
        _STEPS | dict(decay=0.0, kernel_name="gaussian", len_kernel=15, nsig=3) | _DIVERSE,
        "DIFGSM whose gradients are smoothed by a Gaussian of three sigma a side, the only kernel.",
        ours.Transfer,
        fixed=_LINF,
        base=_TIFGSM,
    ),
    "NIFGSM": Row(
        _STEPS | dict(decay=1.0),
        "MIFGSM with Nesterov's step.",
        ours.Transfer,
        fixed=_MOMENTUM | dict(nesterov=True),
    ),
    "SINIFGSM": Row(
        _STEPS | dict(decay=1.0, m=5),
        "NIFGSM over x, x/2, ..., `m` scales.",
        ours.Transfer,
        fixed=_MOMENTUM | dict(nesterov=True),
    ),
    "VMIFGSM": Row(
        _STEPS | dict(decay=1.0, N=5, beta=3 / 2),
        "MIFGSM tuned by the gradients of `N` neighbours within beta eps.",
        ours.Transfer,
        fixed=_MOMENTUM,
        base=_Neighbours,
    ),
    "VNIFGSM": Row(
        _STEPS | dict(decay=1.0, N=5, beta=3 / 2),
        "NIFGSM tuned by the gradients of `N` neighbours within beta eps.",
        ours.Transfer,
        fixed=_MOMENTUM | dict(nesterov=True),
        base=_Neighbours,
    ),
    "RFGSM": Row(
        _STEPS,
        "PGD from a step away, in a random direction of signs.",
        _SignStart,
        fixed=_LINF,
    ),
    "Jitter": Row(
        _STEPS | dict(scale=10, std=0.1, random_start=True),
        "PGD on Jitter's loss (Schwinn et al., arXiv:2105.10304).",
        fixed=_LINF,
        base=_Jitter,
    ),
    "CW": Row(
        dict(c=1, kappa=0, steps=50, lr=0.01),
        "Carlini and Wagner's in l2 with one weight, anywhere in [0, 1].",
        ours.CW,
        fixed=_ANYWHERE | dict(searches=1),
        base=_Minimal,
        aims=False,
    ),
    "DeepFool": Row(
        dict(steps=50, overshoot=0.02),
        "DeepFool in l2, anywhere in [0, 1].",
        ours.DeepFool,
        fixed=_ANYWHERE,
        base=_Minimal,
        aims=False,
    ),
    "VANILA": Row({}, "No attack: the images as they are.", base=_VANILA, aims=False),
    "GN": Row(dict(std=0.1), "Gaussian noise.", base=_GN, aims=False),
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
        base=Seeded,
    ),
    "AutoAttack": Row(
        _NORM | dict(version="standard", n_classes=10, seed=None, verbose=False),
        "AutoAttack with the authors' 100 steps, 9 targets and 5,000 queries, version standard, "
        "plus or rand. `n_classes` has no effect: fewer are followed. seed=None draws anew at each "
        "call.",
        ours.AutoAttack,
        base=Seeded,
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

    def __init__(self, attacks: Sequence[Attack], verbose: bool = False) -> None:
        super().__init__("MultiAttack", attacks[0].model)
        self.attacks, self.verbose = attacks, verbose
        self.device = attacks[0].device
        self._left = [0] * (len(attacks) + 1)  # images, and right ones after each, of save
        self.check_validity()
        self._built = True

    def check_validity(self) -> None:
        """Raise unless there are two attacks or more, on one model."""
        if len(self.attacks) < 2:
            raise ArgumentError(describe("attacks", "two attacks or more", len(self.attacks)))
        if len({id(attack.model) for attack in self.attacks}) != 1:
            fix = "Build them from the same object."
            raise ArgumentError(describe("attacks", "attacks on one model", "several models", fix))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        """In the form of the inputs, where the parts un-normalise for themselves."""
        found, left = images.clone(), torch.arange(len(images), device=images.device)
        self._left[0] += len(images)
        for number, attack in enumerate(self.attacks, start=1):
            moved = attack(images[left], labels[left])
            fooled = self.get_output_with_eval_nograd(moved).argmax(1) != labels[left]
            found[left[fooled]] = moved[fooled]
            left = left[~fooled]
            self._left[number] += len(left)
            if self.verbose:
                shown = (attack.attack, len(left), len(images))
                logger.info("after %s %d of %d images are right", *shown)
            if len(left) == 0:
                break
        return found

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
        rates = [100 * (1 - right / self._left[0]) for right in self._left[1:]]
        return (numbers[0], rates, *numbers[1:]) if return_verbose else None

"""Everything that defines an evaluation, and how its configuration is read and written."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from roli_fast.attacks import ATTACKS, UNSEEN, Attack, AutoAttack
from roli_fast.attacks.auto_attack import PRESETS
from roli_fast.attacks.base import BallAttack
from roli_fast.attacks.objective import LOSSES
from roli_fast.attacks.unseen import Drawn
from roli_fast.configuration import Schema
from roli_fast.configuration.files import load_yaml
from roli_fast.configuration.values import field_types
from roli_fast.data import DATASETS, DataSource
from roli_fast.data.corruptions import CORRUPTIONS
from roli_fast.errors import ArgumentError, ArgumentTypeError, ConfigError, RoliFastError, describe
from roli_fast.evaluate.accuracy import columns
from roli_fast.evaluate.curve import curve_rows
from roli_fast.evaluate.dataset import AttackRow
from roli_fast.norms import NORMS
from roli_fast.registry import Registry
from roli_fast.threat import ThreatModel


@dataclass(frozen=True)
class ModelSource:
    """Where the evaluated model comes from.

    Args:
        source: a weight file (.safetensors, .pth), zoo:NAME, the folder of a training run or of a
            part of it, a timm architecture, or module:factory, a function without arguments that
            returns a model of images in [0, 1].
        name: timm architecture of a weight file that does not name its own.
        pretrained: of a timm architecture: download timm's own weights (asks the network).
        options: further arguments of `timm.create_model`, {img_size: 32} say.
        mean: channel means of the normalisation; null takes what the file was trained with where
            that is known, else timm's own.
        std: channel standard deviations; null likewise.
        resize: size to which images are resized inside the model; null passes them as they are.
    """

    source: str
    name: str | None = None
    pretrained: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: int | None = None


@dataclass(frozen=True)
class EvaluationConfig:
    """An evaluation: a model, images, and attacks under one or several threats.

    Under each norm the attacks run one after another, each on the images that those before left
    right, so a norm's robust accuracy is that against all of them together.

    Args:
        model: the network; `--model X` means `--model.source X`.
        data: the images; for a training run null takes that run's.
        classes: what the model's outputs are called, in their order, or name=output for each class
            of the data; separated by commas, or a file with one a line. Classes and outputs are
            matched by name. Empty takes the names in a trained model's file.
        split: which part of them: "train", "val" or "test".
        attacks: short names, separated by commas (autoattack, autoattack-rand, pgd-50, apgd-ce,
            apgd-t, fab-t, square-1000), or in YAML {name: pgd, steps: 50, restarts: 5};
            autoattack-apgd is what papers on several norms report.
        norm: one or several of linf, l2 and l1; for a training run those of its threat, if `eps` is
            not given either.
        eps: one radius for each norm; null is 8/255 for linf alone.
        union_only: attack under each norm only what survived the norms before: cheaper, and the
            report has no accuracy of a norm by itself, but that of the union.
        unseen: attacks that the model was not trained against, each by itself on all images that
            are right: "square-1000,fab-t" under every norm, "autoattack-apgd@l2=1" in a ball of its
            own, and "l0,fog,snow,gabor,elastic,jpeg" (`attacks.UNSEEN`; jpeg-20 takes 20 steps),
            which no ball holds. Their accuracies, mean and union stand beside the norms; with these
            six and `corruptions` that is universal robustness as in the RAMP paper.
        seed: of every draw, and of the choice of images.
        images: how many images; null takes the whole split. The choice is random, in the
            proportions of the classes; fewer images are the first of more.
        batch_size: images in one pass of the model.
        chunk: images that a search takes at once. It is what a stopped evaluation may have to do
            again, and what processes share; it sets the memory for images, `batch_size` that for
            the model.
        search_dtype: "float32", "bfloat16" or "float16": in which the searches pass their images;
            what they find counts only if it fools the model in its own precision.
        curve: radii of a robustness curve under each of the attacks, for one norm: numbers above 0,
            ascending, separated by commas; curve.png shows it. PGD's steps are a quarter of each
            radius. None without. The expected robustness is the mean accuracy over all radii up to
            `eps`, by the trapezoid rule.
        corruptions: common corruptions under which the same images are classified too, at all five
            severities: names separated by commas, or "all" for the fifteen.
        ood: a second data set with classes of the same names, of which as many images are
            classified.
        save_adversarial: write the images that fooled the model: adversarial.safetensors, and PNGs
            with the names of their sources under adversarial/NORM, beside adversarial/clean.
        device: "auto", "cpu" or "cuda".
        threads: CPU threads; null chooses one for small models and all cores otherwise.
        note: a line for the report.
    """

    model: ModelSource
    data: DataSource
    classes: tuple[str, ...] = ()
    split: Literal["train", "val", "test"] = "test"
    attacks: tuple[Attack, ...] = (AutoAttack(norm=None, eps=None, bounds=None),)
    norm: tuple[str, ...] = ("linf",)
    eps: tuple[float, ...] | None = None
    union_only: bool = False
    unseen: tuple[Attack, ...] = ()
    seed: int = 0
    images: int | None = None
    batch_size: int = 64
    chunk: int = 256
    search_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    curve: tuple[float, ...] = ()
    corruptions: tuple[str, ...] = ()
    ood: DataSource | None = None
    save_adversarial: bool = False
    device: str = "auto"
    threads: int | None = None
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("seed", "images", "batch_size", "chunk", "threads"):
            value, low = getattr(self, name), 0 if name == "seed" else 1
            if value is not None and value < low:
                raise ConfigError(describe(name, f"an integer >= {low}", value))
        if not self.norm or len(set(self.norm)) < len(self.norm):
            raise ConfigError(describe("norm", "one or more different norms", self.norm))
        if self.eps is None and self.norm == ("linf",):
            object.__setattr__(self, "eps", (8 / 255,))
        if self.eps is None or len(self.eps) != len(self.norm):
            got = f"{len(self.eps or ())} for {len(self.norm)} ({', '.join(self.norm)})"
            fix = "Separate them by commas: --norm linf,l2,l1 --eps 8/255,0.5,12"
            raise ConfigError(describe("eps", "one radius for each norm", got, fix))
        kinds = CORRUPTIONS.names() if self.corruptions == ("all",) else self.corruptions
        if any(name not in CORRUPTIONS for name in kinds) or len(set(kinds)) < len(kinds):
            expected = f"'all', or different ones of: {', '.join(CORRUPTIONS)}"
            raise ConfigError(describe("corruptions", expected, ", ".join(kinds)))
        object.__setattr__(self, "corruptions", kinds)
        if not self.attacks:
            raise ConfigError(describe("attacks", "one or more attacks", "none"))
        self._check_attacks()

    def _check_attacks(self) -> None:
        """Whatever an attack refuses is told now, not after an hour."""
        if drawn := [attack.label for attack in self.attacks if isinstance(attack, Drawn)]:
            fix = f"No ball holds it: --unseen {drawn[0]}."
            raise ConfigError(describe("attacks", "attacks in a ball", drawn[0], fix))
        own = {"norm": "--norm", "norms": "--norm", "eps": "--eps", "bounds": "[0, 1]"}
        for attack in (*self.attacks, *self.unseen):
            for name, place in own.items():
                given = getattr(attack, name, None)
                if given is not None and (attack in self.attacks or name == "bounds"):
                    fix = f"Leave it out: {place} holds for all attacks."
                    raise ConfigError(describe(f"attacks.{name}", "null", given, fix))
        for threat in self.threats:
            for attack in self.attacks:
                try:
                    _ = attack.under(threat).parts
                except RoliFastError as error:
                    raise ConfigError(f"`attacks`: {attack.label}: {error}") from error
        if self.unseen and self.union_only:
            fix = "Each of them needs all images: leave one out."
            raise ConfigError(describe("unseen", "none with union_only", "both", fix))
        _ = self.unseen_attacks, self.curves

    @property
    def threats(self) -> tuple[ThreatModel, ...]:
        """One for each norm."""
        return tuple(map(ThreatModel, self.norm, self.eps or ()))

    @property
    def unseen_attacks(self) -> dict[str, BallAttack | Drawn]:
        """Group of results -> unseen attack: each in its own ball, or where it has none in each of
        the evaluation's; "unseen square-5000 l2 0.5" is one of the names.

        Raises:
            ConfigError: an attack that has no one ball, a radius without its norm, or two alike.
        """
        first, *others = self.threats
        norms, radii = tuple(t.norm for t in others), tuple(t.eps for t in others)
        threat = replace(first, other_norms=norms, other_eps=radii)
        found = dict[str, BallAttack | Drawn]()
        for attack in self.unseen:
            try:
                ball = isinstance(attack, BallAttack)
                if ball and attack.norm is None and attack.eps is not None:
                    raise ArgumentError(describe("norm", "one beside an eps", None))
                under = [*columns(attack, threat).values()]
            except RoliFastError as error:
                fix = "An attack of its own ball needs both: square@l2=1, or norm and eps in YAML."
                raise ConfigError(f"`unseen`: {attack.label}: {error} {fix}") from error
            for one in under:
                if not isinstance(one, BallAttack | Drawn) or one.norm is None or one.eps is None:
                    raise ConfigError(describe("unseen", "attacks in one ball", one.label))
                group = f"unseen {one.label} {one.norm} {one.eps:.4g}"
                if group in found:
                    raise ConfigError(describe("unseen", "different attacks", f"{group} twice"))
                found[group] = one
        return found

    @property
    def curves(self) -> list[list[AttackRow]]:
        """The rows of each attack's curve; none without radii.

        Raises:
            ConfigError: several norms, an attack that is not in one ball, radii that do not ascend,
                a fixed step size.
        """
        if not self.curve:
            return []
        first, *others = self.threats
        if others:
            fix = "Radii of different norms cannot be compared: choose one by --norm and --eps."
            raise ConfigError(describe("curve", "one norm", ", ".join(self.norm), fix))
        try:
            attacks: list[Any] = [attack.under(first) for attack in self.attacks]
            return [curve_rows(attack, self.curve, self.seed) for attack in attacks]
        except (ArgumentError, ArgumentTypeError) as error:
            raise ConfigError(str(error).replace("`radii`", "`curve`")) from None


PLACE_FIELDS = ("device", "threads")
"""Fields that say where an evaluation is carried out; a resume may change them."""

SEARCHES: Registry[type[Attack]] = Registry("attack")
"""All attacks, in a ball or not."""

for _table in (ATTACKS, UNSEEN):
    for _name in _table:
        SEARCHES.register(_name)(_table[_name])

EXAMPLES = "autoattack, autoattack-apgd, pgd-50, apgd-ce, apgd-t, fab-t, square-1000"

_WORDS: tuple[tuple[str, str, Callable[[str], Any]], ...] = (
    (r"(\d+)", "steps", int),
    (r"(\d+)", "n_queries", int),
    (f"({'|'.join(LOSSES)})", "loss", str),
    (f"({'|'.join(PRESETS)})", "version", str),
    ("(large)", "large_radius", bool),
    ("(ni)", "nesterov", bool),
    (r"r(\d+)", "restarts", int),
    (r"eot(\d+)", "eot", int),
    (r"s(\d+)", "searches", int),
    (r"ti(\d+)", "kernel", int),
    (r"si(\d+)", "scales", int),
    (r"vt(\d+)", "neighbours", int),
)
"""A word of a short name, the field that it sets where the attack has it, and the value's type."""


def attack_tree(text: str) -> Mapping[str, Any]:
    """What a short name stands for: a registered name, then words in any order.

    A number is the steps (Square's queries), ce, dlr, margin or kl the loss, standard, plus,
    rand or apgd AutoAttack's version, r5 five restarts, eot20 twenty passes, s9 nine searches
    of CW, large the large radii of l1; ti15, si5, ni and vt5 are Transfer's options. @l2=1
    behind them is a norm and its radius, for an attack in a ball of its own.

    Raises:
        ConfigError: no attack has this name, it has nothing that a word could set, or two words
            set the same.
    """
    named, at, ball = text.partition("@")
    words = named.strip().lower().replace("_", "-")
    for name in sorted(SEARCHES, key=len, reverse=True):
        written = name.replace("_", "-")
        if words == written or words.startswith(f"{written}-"):
            break
    else:
        fix = f"Known: {', '.join(SEARCHES)}."
        raise ConfigError(describe("attacks", f"names like {EXAMPLES}", repr(text), fix))
    known = field_types(SEARCHES[name])
    settings: dict[str, Any] = _ball(ball, known, text) if at else {}
    for word in words.removeprefix(written).split("-")[1:]:
        setting, value = _setting(word, known)
        if setting is None or setting in settings:
            fix = f"`{word}` sets nothing there; what has no short name is written in YAML."
            if setting in settings:
                fix = f"`{word}` sets `{setting}`, which is {settings[setting]!r} already."
            raise ConfigError(describe("attacks", f"names like {EXAMPLES}", repr(text), fix))
        settings[setting] = value
    return {"name": name, **settings}


def _ball(ball: str, known: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Norm and radius of "l2=1"."""
    norm, equals, radius = (part.strip() for part in ball.partition("="))
    try:
        eps = float(load_yaml(radius))
        if not equals or norm not in NORMS or "norm" not in known:
            raise ValueError
    except (ValueError, TypeError, ZeroDivisionError):
        expected = f"NAME@NORM=RADIUS with a norm of: {', '.join(NORMS)}"
        raise ConfigError(describe("attacks", expected, repr(text), "square@l2=1, say.")) from None
    return {"norm": norm, "eps": eps}


def _setting(word: str, known: Mapping[str, Any]) -> tuple[str | None, Any]:
    """The field that a word sets, and its value; None where the attack has no such field."""
    for pattern, name, kind in _WORDS:
        fixed = name in ("steps", "n_queries") and "version" in known  # of AutoAttack's definition
        if name in known and not fixed and (found := re.fullmatch(pattern, word)):
            return name, kind(found[1])
    return None, None


COMPONENTS: dict[type, Registry[Any]] = {Attack: SEARCHES, DataSource: DATASETS}
"""Where a field of each base type finds its classes by name."""

SCHEMA = Schema(
    EvaluationConfig,
    COMPONENTS,
    written={Attack: attack_tree, ModelSource: lambda text: {"source": text}},
)

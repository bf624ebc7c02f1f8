"""Everything that defines an evaluation, and how its configuration is read and written."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from roli_fast.attacks import ATTACKS, Attack, AutoAttack
from roli_fast.attacks.base import BallAttack
from roli_fast.configuration import Schema
from roli_fast.data import DATASETS, DataSource
from roli_fast.data.corruptions import CORRUPTIONS
from roli_fast.errors import ConfigError, RoliFastError, describe
from roli_fast.evaluate.attack_names import attack_tree
from roli_fast.evaluate.curve import curve_attacks
from roli_fast.evaluate.threats import each_unseen
from roli_fast.registry import Registry
from roli_fast.threat import ThreatModel

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

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


def usual_attacks() -> tuple[Attack, ...]:
    """AutoAttack, whose norm and radius follow the evaluation."""
    return (AutoAttack(norm=None, eps=None, bounds=None),)


@dataclass(frozen=True)
class Assessment:
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
            own. Their accuracies, mean and union stand beside the norms; with `corruptions` that is
            universal robustness as in the RAMP paper, but with these attacks and the fifteen common
            corruptions: its l0, fog, snow, gabor, elastic and jpeg attacks are not there.
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
            radius. None without.
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

    model: Subject
    data: DataSource
    classes: tuple[str, ...] = ()
    split: Split = "test"
    attacks: tuple[Attack, ...] = field(default_factory=usual_attacks)
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
        self._check_attacks()

    def _check_attacks(self) -> None:
        """Whatever an attack refuses is told now, not after an hour."""
        if not self.attacks:
            raise ConfigError(describe("attacks", "one or more attacks", "none"))
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
        _ = self.curve_attacks
        if self.unseen and self.union_only:
            fix = "Each of them needs all images: leave one out."
            raise ConfigError(describe("unseen", "none with union_only", "both", fix))
        _ = self.unseen_attacks

    @property
    def unseen_attacks(self) -> dict[str, BallAttack]:
        """The unseen attacks in their balls, by group of results."""
        first, *others = self.threats
        norms, radii = tuple(t.norm for t in others), tuple(t.eps for t in others)
        return each_unseen(self.unseen, replace(first, other_norms=norms, other_eps=radii))

    @property
    def curve_attacks(self) -> list[BallAttack]:
        """The attack of each curve; none without radii."""
        return curve_attacks(self.curve, self.attacks, self.threats)

    @property
    def threats(self) -> tuple[ThreatModel, ...]:
        """One for each norm."""
        return tuple(map(ThreatModel, self.norm, self.eps or ()))


PLACE_FIELDS = ("device", "threads")
"""Fields that say where an evaluation is carried out; a resume may change them."""


def same_assessment(a: Assessment, b: Assessment) -> bool:
    """Whether two configurations differ in nothing but `PLACE_FIELDS`."""
    return replace(a, **{name: getattr(b, name) for name in PLACE_FIELDS}) == b


COMPONENTS: dict[type, Registry[Any]] = {Attack: ATTACKS, DataSource: DATASETS}
"""Where a field of each base type finds its classes by name."""

SCHEMA = Schema(
    Assessment,
    COMPONENTS,
    written={Attack: attack_tree, Subject: lambda text: {"source": text}},
)

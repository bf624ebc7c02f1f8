"""Everything that defines a run, and how its configuration is read and written."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from roli_fast.attacks import ATTACKS, Attack
from roli_fast.configuration import Schema, inside
from roli_fast.data import DATASETS, DataSource
from roli_fast.errors import ConfigError, check_choice, describe
from roli_fast.evaluate import columns
from roli_fast.models import HeadInit, Model
from roli_fast.peft import METHODS, Full, Linear, Method
from roli_fast.registry import Registry
from roli_fast.threat import ThreatModel
from roli_fast.train.alignment import OnCollapse
from roli_fast.train.eps_schedule import EPS_SCHEDULES, EpsSchedule
from roli_fast.train.objectives import OBJECTIVES, Adversarial, Objective
from roli_fast.train.optim import SCHEDULES, Optimizer, Schedule
from roli_fast.train.paper_compat import faulty_attack, faulty_stage, known_faults
from roli_fast.train.stage import Stage, measured, one_step, pgd_in_run, ramped


def default_probe() -> Stage:
    """Adversarial linear probing with SGD, as in the RoLI paper, at a rate for these features."""
    return Stage(tuning=Linear(), optimizer=Optimizer(name="sgd", lr=None, weight_decay=0.001))


def default_finetune() -> Stage:
    """Adversarial full fine-tuning with AdamW at a small rate."""
    return Stage(tuning=Full(), optimizer=Optimizer(lr=2.5e-5, weight_decay=0.01))


def default_lp() -> Stage:
    """Clean linear probing by L-BFGS on cached features, as for LP-FT."""
    solver = Optimizer(name="lbfgs", weight_decay=0.0, strengths=(1e-5, 1e-4, 1e-3, 1e-2, 1e-1))
    return Stage(epochs=1, tuning=Linear(), attack=None, optimizer=solver)


@dataclass(frozen=True)
class Experiment:
    """A run: data, model, threat, and the stages of each method.

    Args:
        data: the images to adapt to.
        model: the network and its pretrained weights.
        methods: what to run and compare: "roli" (probe, then finetune from that head), "roli_fast"
            (the same with N-FGSM, a single step, in the place of PGD), "ranli"
            (the fine-tune alone, from a fresh head), "ranli_matched" (ranli with the epochs of both
            stages of roli), "ramp" (ranli with a radius that rises, for a standard backbone),
            "ramp_fast" (the same with N-FGSM, to be measured: whether one step survives a ramp is
            not known), "probe" (stage 1 alone), "finetune" (stage 2 alone, of a classifier
            with its head: `model.weights` or `source` has the classes of `data`), "scratch" (the
            pretrain stage on `data` itself). With the attack off: "lp_ft" (LP-FT: lp, then ft from
            that head), "ft" (the clean fine-tune alone, from a fresh head), "lp" (the clean linear
            probe alone). Those are validated on clean images; the test attacks all alike.
        threat: what the attacker may do; every attack that leaves a field null follows it.
        probe: stage 1 of RoLI, adversarial linear probing.
        finetune: stage 2 of RoLI, adversarial fine-tuning from the probed head.
        ranli: the fine-tune from a fresh head; null takes `finetune` with the epochs of both
            stages, so that both methods see the same number of images.
        lp: clean linear probing, stage 1 of LP-FT: the best head on the features of the training
            images, by L-BFGS.
        ft: clean fine-tuning, the same from a fresh head and from the probed one; null takes
            `finetune` without its attack and gradient projection, with the plain objective.
        source: images for robust pretraining; null takes the model's weights as they are.
        pretrain: the pretraining stage on `source`.
        head_init: how fresh heads start: "default" (timm's values for the architecture), "small"
            (standard deviation 0.01), "zero", "kaiming" (the wide head of the RoLI release), or
            "robust-linear": ranli and ranli_matched probe first, as roli does, others are as with
            "default".
        validation: attack that selects the best epoch; under a threat of several norms it is made
            in each, and the epoch of highest union accuracy is the best (`evaluate.columns`).
        test: attack that the final table reports, in each norm and for their union likewise.
        seeds: every method is repeated with each; more than one gives mean, sd and a paired test.
        device: "auto", "cpu" or "cuda".
        threads: CPU threads; null chooses one for small models and all cores otherwise.
        workers: processes that decode images; 0 suits data in memory.
        checkpoint_minutes: longest work that a crash can lose.
        on_collapse: what follows where an attack of a single step loses its hold, seen by the
            alignment of its gradients or by validation: "steps", back to the best epoch so far, and
            on from there with twice the steps; "stop", the stage ends with that epoch's weights; or
            "ignore".
        paper_compat: faults of the papers' releases to reproduce, for comparing numbers: "all" of
            RoLI's, or any of zero_lr_epoch, fixed_decay, zero_decay_is_sgd, batch_best, wide_head,
            dead_lora, dead_adapter, inert_dropout, bias_tables and, of E-AT and RAMP,
            unscheduled_bias (see below).
        analysis_images: the most images of each split that the light analysis after each method
            looks at; fewer where it would take more than a twentieth of the training's passes; 0
            for no analysis.
        report: whether the run ends by writing report.html.
        note: a line printed under the final table.
    """

    data: DataSource
    model: Model = field(default_factory=Model)
    methods: tuple[str, ...] = ("roli", "ranli")
    threat: ThreatModel = field(default_factory=lambda: ThreatModel())
    probe: Stage = field(default_factory=default_probe)
    finetune: Stage = field(default_factory=default_finetune)
    ranli: Stage | None = None
    lp: Stage = field(default_factory=default_lp)
    ft: Stage | None = None
    source: DataSource | None = None
    pretrain: Stage = field(default_factory=Stage)
    head_init: HeadInit | Literal["robust-linear"] = "default"
    validation: Attack = field(default_factory=lambda: pgd_in_run(10))
    test: Attack = field(default_factory=lambda: pgd_in_run(10))
    seeds: tuple[int, ...] = (0,)
    device: str = "auto"
    threads: int | None = None
    workers: int = 0
    checkpoint_minutes: float = 5.0
    on_collapse: OnCollapse = "steps"
    paper_compat: tuple[str, ...] = ()
    analysis_images: int = 1000
    report: bool = True
    note: str = ""

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in PLANS:
                raise ConfigError(describe("methods", f"any of {', '.join(PLANS)}", repr(method)))
        for name in ("methods", "seeds"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise ConfigError(describe(name, "one or more different values", given))
        object.__setattr__(self, "paper_compat", known_faults(self.paper_compat))
        check_choice("on_collapse", self.on_collapse, get_args(OnCollapse))
        check_choice("head_init", self.head_init, (*get_args(HeadInit), ROBUST_LINEAR))
        self._check_channels()
        self._check_stages()

    def _check_channels(self) -> None:
        own = self.model.options.get("in_chans", len(self.model.mean or (0, 0, 0)))
        for name, source in {"data": self.data, "source": self.source}.items():
            if source and source.channels != own:
                expected = f"{source.channels}, as {name}.channels"
                fix = f"Add --model.options.in_chans={source.channels}, or change {name}.channels."
                raise ConfigError(describe("model.options.in_chans", expected, own, fix))

    def _check_stages(self) -> None:
        """Whatever an attack or a stage refuses is told now, not after an hour of training."""
        for name in ("probe", "lp"):
            if not isinstance(getattr(self, name).tuning, Linear):
                expected = "linear: stage 1 hands over a head alone"
                fix = "For another method use finetune.tuning, or the method ranli."
                got = getattr(self, name).tuning
                raise ConfigError(describe(f"{name}.tuning", expected, got, fix))
        stages = [stage for method in self.methods for stage in self.stages(method)]
        for name, stage in [*stages, ("pretrain", self.pretrain)] if self.source else stages:
            attack = stage.attack.under(self.threat) if stage.attack else None
            if name in CLEAN and attack:
                fix = f"Add --{name}.attack=null, or take the methods probe, roli and ranli."
                expected = "null: this stage is the clean one"
                raise ConfigError(describe(f"{name}.attack", expected, attack.label, fix))
            with inside(name):
                stage.check_solver()
                stage.objective.check(attack)
            if stage.objective.needs_accuracies:
                self._check_measuring(attack)
        for name in ("validation", "test"):
            self.evaluations(name)

    def _check_measuring(self, attack: Attack | None) -> None:
        """An objective that is settled on the accuracy under each norm needs a validation in it."""
        with inside("validation"):
            looks = [self.validation.under(alone) for alone in measured(attack, self.threat)]
        if len(looks) < 2 or looks[0] == looks[1]:
            got = ", ".join(look.label for look in looks) or "none"
            fix = "Leave norm, norms and eps of validation and of the stage's attack null."
            what = "an attack that follows each of two or more norms of the threat, to measure them"
            raise ConfigError(describe("validation", what, got, fix))

    def stages(self, method: str) -> list[tuple[str, Stage]]:
        """The named stages of a method as they run, faults of `paper_compat` included, in order."""
        names = PLANS[method]
        if self.head_init == ROBUST_LINEAR and names[0] in FROM_FRESH:
            names = ("probe", *names)
        faults = self.paper_compat
        stages = [(name, faulty_stage(name, self._stage(name), faults)) for name in names]
        if method in ONE_STEP:
            stages = [(n, one_step(s)) for n, s in stages]
        if method in RAMPED:
            stages = [(n, ramped(s) if n in FROM_FRESH else s) for n, s in stages]
        return stages

    def _stage(self, name: str) -> Stage:
        """The stage called `name`, where it follows from others too.

        "ranli" has the epochs of `probe` and `finetune` where it is null, "ranli_matched" always;
        after a probe of its own (head_init robust-linear) the probe's epochs are spent already.
        "ft" is a clean `finetune` where it is null.
        """
        if name == "ft":
            return self.ft or _without_attack(self.finetune)
        if name not in FROM_FRESH:
            return getattr(self, name)
        stage = self.ranli or self.finetune
        if name == "ranli" and self.ranli:
            return stage
        probed = self.head_init == ROBUST_LINEAR
        spent = 0 if probed else self.probe.epochs
        return replace(stage, epochs=spent + self.finetune.epochs)

    def read_stages(self, method: str) -> set[str]:
        """The fields whose stages a method runs, or whose epochs it is given."""
        names = {name for name, _ in self.stages(method)}
        if "ranli_matched" in names or (names & {"ranli"} and self.ranli is None):
            names |= {"probe", "finetune"}
        if "ranli_matched" in names:
            names = names - {"ranli_matched"} | {"ranli"}
        if "ft" in names and self.ft is None:
            names |= {"finetune"}
        return names

    @property
    def fresh_head(self) -> HeadInit:
        """How a fresh head starts; before a robust probe with timm's values."""
        if "wide_head" in self.paper_compat:
            return "kaiming"
        return "default" if self.head_init == ROBUST_LINEAR else self.head_init

    @property
    def validated_by(self) -> Attack:
        """`validation` as it runs."""
        return faulty_attack(self.validation, self.paper_compat)

    def evaluations(self, name: Literal["validation", "test"]) -> dict[str, Attack]:
        """The attacks of `validation` or `test` as they run, one for each column of results.

        Raises:
            ArgumentError: what an attack refuses under the threat.
        """
        with inside(name):
            return columns(faulty_attack(getattr(self, name), self.paper_compat), self.threat)


def _without_attack(stage: Stage) -> Stage:
    """The same fine-tune on clean images."""
    plain = stage.objective if isinstance(stage.objective, Adversarial) else Adversarial()
    return replace(stage, attack=None, objective=plain, gradient_projection=None)


PLACE_FIELDS = ("device", "threads", "workers", "checkpoint_minutes", "analysis_images", "report")
"""Fields that say where and how a run is carried out and looked at; a resume may change them."""


def same_experiment(a: Experiment, b: Experiment) -> bool:
    """Whether two configurations differ in nothing but `PLACE_FIELDS` and `in_one_part`."""
    here = {name: getattr(b, name) for name in PLACE_FIELDS}
    return in_one_part(replace(a, **here)) == in_one_part(b)


def in_one_part(experiment: Experiment) -> Experiment:
    """The same updates without `accumulate`, by which a resume may fit them into less memory, as it
    may have another number of processes."""
    stages = {name: getattr(experiment, name) for name in STAGES}
    whole = {name: replace(stage, accumulate=1) for name, stage in stages.items() if stage}
    return replace(experiment, **whole)


ROBUST_LINEAR = "robust-linear"
"""The `head_init` that probes first."""

FROM_FRESH = ("ranli", "ranli_matched")
"""The fine-tunes from a fresh head."""

ONE_STEP, RAMPED = ("roli_fast", "ramp_fast"), ("ramp", "ramp_fast")
"""Methods with N-FGSM in the place of PGD, and those whose radius rises."""

CLEAN = ("lp", "ft")
"""The stages without an attack."""

STAGES = ("probe", "finetune", "ranli", "lp", "ft", "pretrain")
"""The fields that are stages."""

PLANS: dict[str, tuple[str, ...]] = {
    "roli": ("probe", "finetune"),
    "roli_fast": ("probe", "finetune"),
    "ranli": ("ranli",),
    "ranli_matched": ("ranli_matched",),
    "ramp": ("ranli",),
    "ramp_fast": ("ranli",),
    "probe": ("probe",),
    "finetune": ("finetune",),
    "scratch": ("pretrain",),
    "lp": ("lp",),
    "ft": ("ft",),
    "lp_ft": ("lp", "ft"),
}
"""Stages of each method. A later stage starts from the pretrained backbone and the head that the
stage before it trained."""

KEEPS_HEAD = "finetune"
"""The method that begins with the head of the weights, where others begin with a fresh one."""


COMPONENTS: dict[type, Registry[Any]] = {
    Attack: ATTACKS,
    DataSource: DATASETS,
    EpsSchedule: EPS_SCHEDULES,
    Method: METHODS,
    Objective: OBJECTIVES,
    Schedule: SCHEDULES,
}
"""Where a field of each base type finds its classes by name."""

SCHEMA = Schema(Experiment, COMPONENTS)

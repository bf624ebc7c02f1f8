"""Everything that defines a run."""

from dataclasses import dataclass, field, replace

from roli_fast.attacks import Attack
from roli_fast.data import DataSource
from roli_fast.errors import ArgumentError, ConfigError, describe
from roli_fast.models import Model
from roli_fast.models.head import HeadInit
from roli_fast.peft import Full, Linear
from roli_fast.threat import ThreatModel
from roli_fast.train.optim import Optimizer
from roli_fast.train.stage import Stage, pgd_in_run


def default_probe() -> Stage:
    """Adversarial linear probing with SGD, as in the RoLI paper."""
    return Stage(tuning=Linear(), optimizer=Optimizer(name="sgd", lr=0.1, weight_decay=0.001))


def default_finetune() -> Stage:
    """Adversarial full fine-tuning with AdamW at a small rate."""
    return Stage(tuning=Full(), optimizer=Optimizer(lr=2.5e-5, weight_decay=0.01))


@dataclass(frozen=True)
class Experiment:
    """A run: data, model, threat, and the stages of each method.

    Args:
        data: the images to adapt to.
        model: the network and its pretrained weights.
        methods: what to run and compare: "roli" (probe, then finetune from that head), "ranli"
            (the fine-tune alone, from a fresh head), "probe" (stage 1 alone), "scratch" (the
            pretrain stage on `data` itself).
        threat: what the attacker may do; every attack that leaves a field null follows it.
        probe: stage 1 of RoLI, adversarial linear probing.
        finetune: stage 2 of RoLI, adversarial fine-tuning from the probed head.
        ranli: the fine-tune from a fresh head; null takes `finetune` with the epochs of both
            stages, so that both methods see the same number of images.
        source: images for robust pretraining; null takes the model's weights as they are.
        pretrain: the pretraining stage on `source`.
        head_init: how fresh heads start: "default" (timm's small random values), "zero", or
            "kaiming" (the wide head of the RoLI release).
        validation: attack that selects the best epoch.
        test: attack that the final table reports.
        seeds: every method is repeated with each; more than one gives mean, sd and a paired test.
        device: "auto", "cpu" or "cuda".
        threads: CPU threads; null chooses one for small models and all cores otherwise.
        workers: processes that decode images; 0 suits data in memory.
        checkpoint_minutes: longest work that a crash can lose.
        note: a line printed under the final table.
    """

    data: DataSource
    model: Model = field(default_factory=Model)
    methods: tuple[str, ...] = ("roli", "ranli")
    threat: ThreatModel = field(default_factory=ThreatModel)
    probe: Stage = field(default_factory=default_probe)
    finetune: Stage = field(default_factory=default_finetune)
    ranli: Stage | None = None
    source: DataSource | None = None
    pretrain: Stage = field(default_factory=Stage)
    head_init: HeadInit = "default"
    validation: Attack = field(default_factory=lambda: pgd_in_run(10))
    test: Attack = field(default_factory=lambda: pgd_in_run(10))
    seeds: tuple[int, ...] = (0,)
    device: str = "auto"
    threads: int | None = None
    workers: int = 0
    checkpoint_minutes: float = 5.0
    note: str = ""

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in PLANS:
                raise ConfigError(describe("methods", f"any of {', '.join(PLANS)}", repr(method)))
        for name in ("methods", "seeds"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise ConfigError(describe(name, "one or more different values", given))
        if self.head_init not in ("default", "zero", "kaiming"):
            raise ArgumentError(
                describe("head_init", "'default', 'zero' or 'kaiming'", repr(self.head_init))
            )
        self._check_numbers()
        self._check_stages()

    def _check_numbers(self) -> None:
        least = {"checkpoint_minutes": 0, "workers": 0, "threads": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(describe(name, f"a number >= {low}", value))
        if min(self.seeds) < 0:
            raise ConfigError(describe("seeds", "integers >= 0", self.seeds))

    def _check_stages(self) -> None:
        """Whatever an attack or a stage refuses is told now, not after an hour of training."""
        if not isinstance(self.probe.tuning, Linear):
            raise ConfigError(
                describe(
                    "probe.tuning",
                    "linear: stage 1 hands over a head alone",
                    self.probe.tuning,
                    "For another method use finetune.tuning, or the method ranli.",
                )
            )
        for name in {name for method in self.methods for name in PLANS[method]}:
            attack = self.stage(name).attack
            if attack is not None:
                attack.under(self.threat)
        self.validation.under(self.threat)
        self.test.under(self.threat)

    def stages(self, method: str) -> list[tuple[str, Stage]]:
        """The named stages of a method, in order."""
        return [(name, self.stage(name)) for name in PLANS[method]]

    def stage(self, name: str) -> Stage:
        """The stage called `name`; "ranli" is filled in from `finetune` where it is null."""
        if name == "ranli" and self.ranli is None:
            return replace(self.finetune, epochs=self.probe.epochs + self.finetune.epochs)
        return getattr(self, name)


PLACE_FIELDS = ("device", "threads", "workers", "checkpoint_minutes")
"""Fields that say where and how a run is carried out; a resume may change them."""


def same_experiment(a: Experiment, b: Experiment) -> bool:
    """Whether two configurations differ in nothing but `PLACE_FIELDS`."""
    return replace(a, **{name: getattr(b, name) for name in PLACE_FIELDS}) == b


PLANS: dict[str, tuple[str, ...]] = {
    "roli": ("probe", "finetune"),
    "ranli": ("ranli",),
    "probe": ("probe",),
    "scratch": ("pretrain",),
}
"""Stages of each method. A later stage starts from the pretrained backbone and the head that the
stage before it trained."""

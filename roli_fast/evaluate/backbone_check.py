"""Whether a backbone does here, with its own head, what it came with: `python -m roli_fast.zoo
check`. Wrong normalisations and dead or exchanged files load without an error otherwise."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn

from roli_fast import models, zoo
from roli_fast.attacks import PGD
from roli_fast.data import ImageDataset, batches
from roli_fast.data.image_folder import ImageFolder
from roli_fast.errors import CheckpointError, describe
from roli_fast.evaluate.accuracy import evaluate
from roli_fast.evaluate.config import ModelSource
from roli_fast.evaluate.prepare import match_classes, open_model
from roli_fast.evaluate.shares import accuracy, standard_error
from roli_fast.models.layers import Normalize, Resize
from roli_fast.models.normalization import Normalization, shown
from roli_fast.running.device import pick_device
from roli_fast.running.progress import progress_bar
from roli_fast.threat import ThreatModel

DOUBT = 3.0
"""Standard errors beyond which a difference is told as one."""


@dataclass(frozen=True)
class BackboneCheck:
    """What was measured; `lines` tells it.

    Args:
        name: of the backbone.
        used: mean and std that its images were normalised with.
        usual: those of timm for the architecture.
        clean: bool (N,), the images that it classifies right among the matched classes.
        robust: those that stay right under PGD-10 in `threat`.
        others: clean flags under other common normalisations, by name.
        threat: the ball of PGD-10.
        classes: how many classes the images are of.
        outputs: how many outputs its head has.
        enlarged_from: side of images that are smaller than the network's; None for others.
        entry: of the zoo, with the accuracies that it came with.
    """

    name: str
    used: Normalization
    usual: Normalization
    clean: Tensor
    robust: Tensor
    others: dict[str, Tensor]
    threat: ThreatModel
    classes: int
    outputs: int
    enlarged_from: int | None
    entry: zoo.Entry | None

    @property
    def warnings(self) -> list[str]:
        """What is wrong: another normalisation does better, or an accuracy is below the reported
        one, each by more than chance allows."""
        found, enlarged = [], ""
        if self.others:
            name, flags = max(self.others.items(), key=lambda pair: accuracy(pair[1]))
            gained, lost = int((flags & ~self.clean).sum()), int((self.clean & ~flags).sum())
            if gained - lost > DOUBT * math.sqrt(gained + lost):  # McNemar's test
                values = self.usual if name == "timm's" else zoo.NORMALIZATIONS[name]
                text = f"suspicious normalisation: with {shown(values)} ({name}) it has "
                mean, std = (",".join(map(str, part)) for part in values)
                text += f"{accuracy(flags):.1%} instead of {accuracy(self.clean):.1%}; in a run "
                found.append(f"{text}write --model.mean {mean} --model.std {std}")
        if self.enlarged_from:
            enlarged = f" (on images of {self.enlarged_from} px, enlarged: lower is expected)"
        for name in ("clean", "robust") if self.entry else ():
            flags, reported = getattr(self, name), getattr(self.entry, name) or 0.0
            doubt = DOUBT * standard_error(reported / 100, len(flags))
            if accuracy(flags) < reported / 100 - doubt:
                text = f"{name} accuracy is below the {reported} % that it came with"
                found.append(text + enlarged)
        return found

    def lines(self) -> Iterator[str]:
        """The report."""
        count, eps = len(self.clean), self.threat.eps
        radius = f"{eps * 255:.4g}/255" if self.threat.norm == "linf" else f"{eps:.4g}"
        attack = f"PGD-10 {self.threat.norm} {radius}"
        among = f"{count} images of {self.classes} classes"
        if self.classes < self.outputs:
            among += f", answered among these alone of its {self.outputs} outputs"
        if self.enlarged_from:
            among += f"; enlarged from {self.enlarged_from} px"
        yield f"{self.name}: {among}"
        yield f"normalised with {shown(self.used)}"
        if self.used != self.usual:
            yield f"  (timm's for this architecture: {shown(self.usual)})"
        for name, flags in {"clean": self.clean, attack: self.robust}.items():
            share = accuracy(flags)
            yield f"{name:22}{share:6.1%} +- {standard_error(share, count):.1%}"
        if self.entry:
            yield f"{'it came with':22}{self.entry.reported}, on ImageNet's validation images"
        for name, flags in self.others.items():
            yield f"{'clean with ' + name:22}{accuracy(flags):6.1%}"
        yield from self.warnings or ["nothing suspicious"]


class _Among(nn.Module):
    """The logits of some outputs alone."""

    outputs: Tensor

    def __init__(self, model: models.Classifier, outputs: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("outputs", torch.tensor(outputs), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[:, self.outputs]


def check_backbone(  # noqa: PLR0913 - the command's own options
    name: str,
    root: str,
    *,
    weights: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    images: int = 400,
    device: str = "auto",
) -> BackboneCheck:
    """Measure clean and PGD-10 accuracy of a backbone with its own head.

    Args:
        name: an entry of the zoo, or a timm architecture.
        root: image folders whose names are the classes of the head: ImageNet's synsets or names.
        weights: its file; None takes the zoo's, or of a timm architecture those that timm
            downloads.
        mean: channel means; None takes the weights' own.
        std: channel standard deviations; None likewise.
        images: about how many, the same number of each class.
        device: "auto", "cpu" or "cuda".

    Raises:
        CheckpointError: it has no head for classes.
        ConfigError: classes that cannot be matched with its outputs.
        DataError: no images.
    """
    entry = zoo.ZOO.get(name)
    if entry and not entry.head:
        fix = "Nothing can be measured before a head is trained on it."
        got = f"{name}, which has none. {entry.note}"
        raise CheckpointError(describe("name", "a network with a head for classes", got, fix))
    given = weights or (f"{zoo.PREFIX}{name}" if entry else name)
    subject = ModelSource(given, mean=mean, std=std, pretrained=not (weights or entry))
    if weights:
        architecture, options = (entry.architecture, entry.options) if entry else (name, {})
        subject = replace(subject, name=architecture, options=dict(options))
    opened = open_model(subject, num_classes=1000, image_size=None)
    model = opened.model
    assert isinstance(model, models.Classifier), "open_model makes a classifier of weights"
    own = getattr(model.backbone, "pretrained_cfg", {})
    size = entry.image_size if entry else own.get("input_size", (3, 224, 224))[-1]
    dataset, classes, side = _images(root, size, images)
    if side < size:
        model.resize = Resize(size)
    where = pick_device(device)
    outputs = model.head.out_features
    columns, _ = match_classes(classes, opened.classes, outputs)
    threat = _threat(entry.trained_for if entry else "clean")
    attack = PGD(norm=threat.norm, eps=threat.eps, steps=10)
    used = tuple(model.card["mean"]), tuple(model.card["std"])
    usual = (tuple(own["mean"]), tuple(own["std"])) if own.get("mean") else used

    among = _Among(model, columns).to(where).eval()
    clean, robust = _flags("clean and PGD-10", among, used, dataset, attack)
    tried, others = {used}, {}
    for label, values in {"timm's": usual, **zoo.NORMALIZATIONS}.items():
        if values not in tried and len(values[0]) == len(used[0]):
            others[label], _ = _flags(f"clean with {label}", among, values, dataset)
            tried.add(values)
    enlarged = side if side < size else None
    return BackboneCheck(
        name, used, usual, clean, robust, others, threat, len(classes), outputs, enlarged, entry
    )


def _flags(
    title: str, among: _Among, normalization: Normalization, dataset: ImageDataset, *attacks: PGD
) -> tuple[Tensor, Tensor]:
    """Which images are right, clean and under all attacks, with this normalisation."""
    where = among.outputs.device
    among.model.normalize = Normalize(*normalization).to(where)
    given = batches(dataset, batch_size=32, seed=0, epoch=0, shuffle=False, device=where)
    with progress_bar(title, total=len(dataset), leave=False, delay=1.0) as bar:
        result = evaluate(among, given, attacks, after_batch=bar.update)
    return result.clean, result.union


def _images(root: str, size: int, images: int) -> tuple[ImageDataset, tuple[str, ...], int]:
    """The images, what their classes are called, and their side: `size`, or their own where that is
    smaller."""
    held_out = (Path(root) / name for name in ("val", "test"))
    folder = next((path for path in held_out if path.is_dir()), Path(root))
    source = ImageFolder(str(folder), image_size=size)
    splits = source.load()
    side = min(size, *splits.test.pixels.read(int(splits.test.ids[0])).shape[-2:])
    splits = replace(source, image_size=side).load()
    parts = splits.test, splits.val, splits.train  # no part was trained on here
    ids, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("ids", "labels"))
    whole = replace(splits.test.plain(), ids=ids, labels=labels)
    most = max(1, images // len(splits.classes))
    chosen = [torch.nonzero(labels == label).flatten()[:most] for label in labels.unique()]
    return whole.subset(torch.cat(chosen)), splits.classes, side


def _threat(trained_for: str) -> ThreatModel:
    norm, _, eps = trained_for.partition(" ")
    return ThreatModel(norm, float(Fraction(eps))) if eps else ThreatModel("linf", 4 / 255)

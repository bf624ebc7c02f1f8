"""Reads data and opens the model, and finds what does not fit before anything is written."""

import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from roli_fast import models, zoo
from roli_fast.data import ImageDataset, Splits
from roli_fast.data.inspection import inspect_images
from roli_fast.engine import in_train_mode
from roli_fast.engine.input_gradient import Model, check_logits
from roli_fast.errors import ArgumentError, ConfigError, RoliFastError, RunDirectoryError, describe
from roli_fast.evaluate.config import PLACE_FIELDS, SCHEMA, EvaluationConfig, ModelSource
from roli_fast.evaluate.dataset import mixed_order
from roli_fast.files import naming, read_json
from roli_fast.models.weights import fingerprint, read_card
from roli_fast.registry import import_object
from roli_fast.running.device import pick_device, pick_threads
from roli_fast.running.environment import hash_samples, hash_text, packages
from roli_fast.running.ranks import Ranks

logger = logging.getLogger("roli_fast.evaluate")

IDENTITY = "identity.json"
"""The file of what an evaluation's results depend on, so that a resume never mixes two."""

WEIGHTS = (".safetensors", ".pth", ".pt", ".bin")


@dataclass(frozen=True)
class OpenedModel:
    """A model that is ready to be attacked: images (B, ...) in [0, 1] -> logits (B, C), a module in
    eval mode; what the report says of it; its outputs' names, where they are known; and what the
    user should know."""

    model: Model
    described: dict[str, Any]
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """What is known before the folder is touched.

    Args:
        splits: the data.
        datasets: what is evaluated of "data", and of "ood" where there is one, in the order of the
            evaluation; labels are outputs of the model.
        opened: the model.
        num_outputs: how many outputs it has.
        outputs: those of them that stand for the classes of the data.
        device: where it is.
        identity: hashes of what results depend on, and how many threads found them.
    """

    splits: Splits
    datasets: dict[str, ImageDataset]
    opened: OpenedModel
    num_outputs: int
    outputs: tuple[int, ...]
    device: torch.device
    identity: dict[str, Any]


def prepare(config: EvaluationConfig, ranks: Ranks, *, quiet: bool = True) -> Prepared:
    """Read the data and open the model, as far as that finds mistakes; writes nothing.

    All images that will be evaluated are decoded once.
    """
    device = pick_device(ranks.device(config.device))
    splits: dict[str, Splits] = {}
    for name, source in (("data", config.data), ("ood", config.ood)):
        try:
            splits |= {name: source.load()} if source else {}
        except RoliFastError as error:  # told with the field
            raise type(error)(f"{name}: {error}") from error
    datasets = {name: chosen(config, own, at_most=name == "ood") for name, own in splits.items()}
    hashes = inspect_images(datasets, decode=True, quiet=quiet)
    own, size = splits["data"], datasets["data"].image_size
    opened = open_model(config.model, num_classes=own.num_classes, image_size=size)
    threads = config.threads or torch.get_num_threads()
    if isinstance(opened.model, nn.Module):
        opened.model.to(device)
        threads = config.threads or pick_threads(opened.model, size, config.batch_size)
    tree = {k: v for k, v in SCHEMA.to_tree(config).items() if k not in PLACE_FIELDS}
    samples = ((d.name(i), y) for d in datasets.values() for i, y in enumerate(d.labels.tolist()))
    identity: dict[str, Any] = {
        "configuration": hash_text(json.dumps(tree, sort_keys=True)),
        "model": opened.described["sha256"],
        "images": hash_samples(samples),
        "pixels": hash_text("\n".join(one for name in datasets for one in hashes[name])),
    }
    identity |= {"key": hash_text(json.dumps(identity, sort_keys=True))}
    identity |= {"threads": threads, "device": str(device), "packages": packages()}
    outputs, notes, count = dict[str, tuple[int, ...]](), list(opened.notes), 0
    for name, dataset in datasets.items():
        count = _count_outputs(opened, dataset, device)
        names = (splits[name].classes, opened.classes)
        outputs[name], more = match_classes(*names, count, config.classes, name)
        datasets[name] = replace(dataset, labels=torch.tensor(outputs[name])[dataset.labels])
        notes += more if name == "data" else [f"{name}: {note}" for note in more]
    opened = replace(opened, notes=tuple(notes))
    return Prepared(own, datasets, opened, count, outputs["data"], device, identity)


def chosen(config: EvaluationConfig, splits: Splits, *, at_most: bool = False) -> ImageDataset:
    """The images of an evaluation, without augmentation, in the order of the evaluation.

    Args:
        config: the split, the seed, and how many images.
        splits: of the data.
        at_most: take all where there are fewer, as of a second data set.

    Raises:
        ArgumentError: more images than the split has.
    """
    dataset: ImageDataset = getattr(splits, config.split)
    count = config.images or len(dataset)
    if count > len(dataset) and not at_most:
        raise ArgumentError(
            describe("images", f"at most {len(dataset)}, the {config.split} split", count)
        )
    return dataset.plain().subset(mixed_order(dataset.labels, config.seed)[:count])


def check_same(folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """What was recorded in the folder of an evaluation.

    Raises:
        RunDirectoryError: nothing readable, or something else than `identity`.
    """
    path = folder / IDENTITY
    fix = "Nothing was changed. Leave out --resume, and name a new folder."
    with naming(path, RunDirectoryError, "--out", "a folder in which an evaluation began", fix):
        saved = read_json(path)
        names = ("configuration", "model", "images", "pixels")
        changed = [name for name in names if saved[name] != identity[name]]
    if changed:
        raise RunDirectoryError(
            f"`--out`: '{folder}' began with another {', another '.join(changed)}: its flags would "
            "be mixed with others. Put back what changed, or name a new folder."
        )
    return saved


def _count_outputs(opened: OpenedModel, dataset: ImageDataset, device: torch.device) -> int:
    """How many outputs the model has; one image goes through it, to see that the two fit."""
    x = dataset.batch(torch.tensor([0])).x.to(device)
    try:
        with torch.no_grad():
            logits: Any = opened.model(x)
    except Exception as error:  # whatever a model raises for images of another size
        fix = "Set data.image_size (or model.resize) and data.channels to the model's."
        got = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise ArgumentError(
            describe("model", f"a model of images {tuple(x.shape[1:])}", got, fix)
        ) from error
    check_logits(logits, x)
    return logits.shape[1]


def open_model(source: ModelSource, *, num_classes: int, image_size: int | None) -> OpenedModel:
    """Open a model.

    Args:
        source: where it comes from.
        num_classes: outputs of a timm architecture without weights of its own.
        image_size: of the images it will get; None leaves it unchecked.

    Raises:
        ConfigError: there is no such thing; it is several; a field beside it has no effect.
        CheckpointError: a weight file that is missing, damaged or does not fit.
    """
    text, path, name = source.source, Path(source.source), source.name
    settings = {key: getattr(source, key) for key in ("options", "mean", "std", "resize")}
    if path.is_dir():
        path = weight_file(path)
        logger.info("model: %s", path)
    if text.startswith(zoo.PREFIX):
        path, name = zoo.local_file(text), name or zoo.find(text[len(zoo.PREFIX) :]).architecture
    elif path.suffix in WEIGHTS or path.is_file():
        if read_card(path):
            _nothing_beside(source, f"'{path}', which names its own architecture")
            model = models.load(path)
            described = {"file": str(path), "architecture": model.card["name"]}
            return _opened(model, described, model.card["classes"])
        if not name:
            models.read_state_dict(path)  # a missing or damaged file is told as such
            fix = "Add --model.name with its timm architecture, and its --model.options."
            expected = "a file that names its architecture"
            raise ConfigError(describe("model", expected, f"'{text}'", fix))
    elif models.Model(text).foreign:
        return _made(source)
    elif "/" in text and ":" not in text:
        kinds = "a weight file, a run's folder, zoo:NAME, module:factory or a timm architecture"
        raise ConfigError(describe("model", kinds, f"'{text}', which does not exist"))
    elif name:
        fix = "It is the architecture of a weight file: leave it out."
        raise ConfigError(describe("model.name", "null", repr(name), fix))
    else:
        config = models.Model(name=text, pretrained=source.pretrained, **settings)
        model = models.create(
            config,
            num_classes=models.published_outputs(config) or num_classes,
            image_size=image_size,
            with_head=source.pretrained,  # timm would put a random one on them unasked
        ).eval()
        notes = () if source.pretrained else (f"{text} has random weights",)
        return _opened(model, {"architecture": text}, notes=notes)
    config = models.Model(name=name, weights=text, pretrained=source.pretrained, **settings)
    model = models.restore(config, image_size=image_size)
    return _opened(model, {"file": str(path), "architecture": name})


def _made(source: ModelSource) -> OpenedModel:
    """A module of the user's, or what a function gives."""
    _nothing_beside(source, source.source)
    model = import_object("model", source.source)
    if not isinstance(model, nn.Module):
        model = model()
    notes: tuple[str, ...] = ()
    if isinstance(model, nn.Module) and in_train_mode(model):
        notes = (f"{source.source} gave a model in train mode; it is evaluated in eval mode",)
        model.eval()
    classes = model.card.get("classes", ()) if isinstance(model, models.Classifier) else ()
    return _opened(model, {"factory": source.source}, classes, notes)


def _opened(
    model: Any,
    described: dict[str, Any],
    classes: Sequence[str] = (),
    notes: tuple[str, ...] = (),
) -> OpenedModel:
    """With a fingerprint of the weights, where it has any that can be seen."""
    state = model.state_dict() if isinstance(model, nn.Module) else None
    if state is None or not state and isinstance(model, torch.jit.ScriptModule):
        kind = "no nn.Module" if state is None else "a frozen script"
        notes += (f"the model is {kind}: whether it changed cannot be told at a resume",)
        state = None
    described["sha256"] = None if state is None else fingerprint(state)
    return OpenedModel(model, described, tuple(classes), notes)


def _nothing_beside(source: ModelSource, what: str) -> None:
    for f in fields(ModelSource):
        value = getattr(source, f.name)
        if f.name != "source" and value:
            raise ConfigError(describe(f"model.{f.name}", f"nothing beside {what}", repr(value)))


def weight_file(folder: Path) -> Path:
    """The one model in a run's folder, or in a part of it: the weights its last stage ended with.

    Raises:
        ConfigError: there is none, or there are several; they are listed.
    """
    if (folder / "best.safetensors").is_file():
        return folder / "best.safetensors"
    last: dict[Path, tuple[int, Path]] = {}
    for path in folder.rglob("best.safetensors"):
        if stage := re.match(r"stage-(\d+)-", path.parent.name):
            method, found = path.parent.parent, (int(stage[1]), path)
            last[method] = max(found, last.get(method, found))
    paths = sorted(path for _, path in last.values())
    finished = [path for path in paths if (path.parent / "result.json").is_file()]
    if len(finished) == 1 and len(paths) == 1:
        return finished[0]
    if not paths:
        fix = "Name a weight file, or a folder that python -m roli_fast.train wrote."
        raise ConfigError(describe("model", "a folder with a trained model", f"'{folder}'", fix))
    names = "\n".join(f"  {path}{'' if path in finished else ' (unfinished)'}" for path in paths)
    fix = f"Choose one with --model:\n{names}"
    raise ConfigError(describe("model", "one finished model", f"{len(paths)} in '{folder}'", fix))


def match_classes(
    classes: tuple[str, ...],
    known: tuple[str, ...],
    outputs: int,
    given: Sequence[str] = (),
    field: str = "data",
) -> tuple[tuple[int, ...], list[str]]:
    """The output that is right for each class of the data, and what the user should know.

    Args:
        classes: of the data, in the order of its labels.
        known: the names of the model's outputs, where its file tells them.
        outputs: how many the model has.
        given: the user's names, see `EvaluationConfig.classes`; they count before `known`.
        field: of the data set in the configuration.

    Raises:
        ConfigError: names that leave the output of a class open.
    """
    names = _given(given, outputs) if given else _once(known)
    if not names and outputs == 1000:
        names = _imagenet(classes)
    same = tuple(range(len(classes)))
    if known == classes and not given:
        return same, []
    if all(name in names for name in classes):
        found = tuple(names[name] for name in classes)
        if found == same and len(same) == outputs:
            return found, []
        shown = ", ".join(map(str, found[:10])) + (", ..." if len(found) > 10 else "")
        text = f"the data's {len(found)} classes are the outputs {shown} of {outputs} by their "
        return found, [f"{text}names; an image that is given another output is wrong"]
    elsewhere = any(names.get(name, place) != place for place, name in enumerate(classes))
    if given or elsewhere or len(classes) != outputs:
        unnamed = [name for name in classes if name not in names]
        few = ", ".join(map(repr, unnamed[:3])) + (", ..." if len(unnamed) > 3 else "")
        got = f"{len(classes)} classes in {field} and {outputs} outputs, and nothing that tells "
        raise ConfigError(
            describe(
                "classes", "the model's output of every class", f"{got}the output of {few}", _FIX
            )
        )
    different = [pair for pair in zip(known, classes, strict=False) if pair[0] != pair[1]]
    if not different:
        return same, []
    theirs, ours = different[0]
    text = f"{len(different)} classes are called otherwise in the data than in the model's file "
    text += f"('{ours}', '{theirs}'): if they are others, the accuracy says nothing"
    return same, [text]


_FIX = (
    "Name the model's outputs in their order, --classes cat,dog,owl or a file with one name a line,"
    " or give the output of each class, --classes cat=281,dog=207."
)


def _given(entries: Sequence[str], outputs: int) -> dict[str, int]:
    """Name -> output of `name` (its place is the output), `name=output`, or a file with such."""
    if len(entries) == 1 and Path(entries[0]).is_file():
        lines = Path(entries[0]).read_text(encoding="utf-8").splitlines()
        entries = [line.strip() for line in lines if line.strip()]
    found: dict[str, int] = {}
    for place, entry in enumerate(entries):
        match = re.fullmatch(r"(.+)=(\d+)", entry)
        name, output = (match[1], int(match[2])) if match else (entry, place)
        if name in found or output >= outputs:
            expected = f"different names of outputs 0 to {outputs - 1}"
            raise ConfigError(describe("classes", expected, f"'{entry}'", _FIX))
        found[name] = output
    return found


def _imagenet(classes: tuple[str, ...]) -> dict[str, int]:
    """Folder -> output of those that are called as in ImageNet, "n01440764" or "golden_retriever";
    none of a thousand others."""
    called = [(output, word) for output, own in enumerate(models.imagenet_names()) for word in own]
    counts = Counter(word.lower() for _, word in called)
    known = {word.lower(): output for output, word in called if counts[word.lower()] == 1}
    found = {name: known.get(name.lower().replace("_", " ")) for name in classes}
    complete = all(output is not None for output in found.values())
    if len(classes) == len(models.imagenet_names()) and not complete:
        return {}
    return {name: output for name, output in found.items() if output is not None}


def _once(names: Sequence[str]) -> dict[str, int]:
    """Name -> output; a name that several outputs have tells nothing."""
    counts = Counter(names)
    return {name: place for place, name in enumerate(names) if counts[name] == 1}

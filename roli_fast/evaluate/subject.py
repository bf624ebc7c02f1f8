"""Opens what is to be evaluated."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from roli_fast import models, zoo
from roli_fast.engine import in_train_mode
from roli_fast.engine.input_gradient import Model
from roli_fast.errors import ConfigError, RoliFastError, describe
from roli_fast.evaluate.assessment import Subject
from roli_fast.models.weights import fingerprint, read_card
from roli_fast.registry import import_object

logger = logging.getLogger("roli_fast.evaluate")

WEIGHTS = (".safetensors", ".pth", ".pt", ".bin")


@dataclass(frozen=True)
class Opened:
    """A model that is ready to be attacked.

    Args:
        model: images (B, ...) in [0, 1] -> logits (B, C); a module is in eval mode.
        described: what the report says of it.
        classes: the names of its outputs, where they are known.
        notes: what the user should know.
    """

    model: Model
    described: dict[str, Any]
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def open_model(subject: Subject, *, num_classes: int, image_size: int | None) -> Opened:
    """Open a subject.

    Args:
        subject: what is evaluated.
        num_classes: outputs of a timm architecture without weights of its own.
        image_size: of the images it will get; None leaves it unchecked.

    Raises:
        ConfigError: there is no such thing; it is several; a field beside it has no effect.
        CheckpointError: a weight file that is missing, damaged or does not fit.
    """
    source = subject.source
    path = Path(source)
    if path.is_dir():
        path = weight_file(path)
        logger.info("model: %s", path)
    if source.startswith(zoo.PREFIX):
        name = subject.name or zoo.find(source.removeprefix(zoo.PREFIX)).architecture
        return _foreign(subject, zoo.local_file(source), name, image_size)
    if path.suffix in WEIGHTS or path.is_file():
        if read_card(path):
            _nothing_beside(subject, f"'{path}', which names its own architecture")
            model = models.load(path)
            described = {"file": str(path), "architecture": model.card["name"]}
            return _opened(model, described, model.card["classes"])
        if not subject.name:
            models.read_state_dict(path)  # a missing or damaged file is told as such
            fix = "Add --model.name with its timm architecture, and its --model.options."
            raise ConfigError(
                describe("model", "a file that names its architecture", f"'{source}'", fix)
            )
        return _foreign(subject, path, subject.name, image_size)
    if models.Model(source).foreign:
        return _made(subject)
    if "/" in source and ":" not in source:
        kinds = "a weight file, a run's folder, zoo:NAME, module:factory or a timm architecture"
        raise ConfigError(describe("model", kinds, f"'{source}', which does not exist"))
    return _architecture(subject, num_classes, image_size)


def _foreign(subject: Subject, path: Path, name: str, image_size: int | None) -> Opened:
    """A weight file of others."""
    config = _model(subject, name=name, weights=subject.source)
    model = models.restore(config, image_size=image_size)
    return _opened(model, {"file": str(path), "architecture": name})


def _architecture(subject: Subject, num_classes: int, image_size: int | None) -> Opened:
    """timm's own weights, or random ones."""
    if subject.name:
        fix = "It is the architecture of a weight file: leave it out."
        raise ConfigError(describe("model.name", "null", repr(subject.name), fix))
    config = _model(subject, name=subject.source)
    model = models.create(
        config,
        num_classes=models.published_outputs(config) or num_classes,
        image_size=image_size,
        with_head=subject.pretrained,  # timm would put a random one on them unasked
    ).eval()
    notes = () if subject.pretrained else (f"{subject.source} has random weights",)
    return _opened(model, {"architecture": subject.source}, notes=notes)


def _model(subject: Subject, **more: Any) -> models.Model:
    names = ("pretrained", "options", "mean", "std", "resize")
    return models.Model(**{name: getattr(subject, name) for name in names}, **more)


def _made(subject: Subject) -> Opened:
    """What a module or a function of the user's gives."""
    _nothing_beside(subject, subject.source)
    factory = import_object("model", subject.source)
    try:
        model = factory if isinstance(factory, nn.Module) else factory()
    except RoliFastError:
        raise
    except Exception as error:  # whatever someone's module or function raises
        fix = "It is called without arguments."
        got = f"'{subject.source}' that raised {type(error).__name__}: {error}"
        expected = "module:factory that gives a model"
        raise ConfigError(describe("model", expected, got, fix)) from error
    if not callable(model):
        got = f"{type(model).__name__} from '{subject.source}'"
        raise ConfigError(describe("model", "a factory that returns a model", got))
    notes: tuple[str, ...] = ()
    if isinstance(model, nn.Module) and in_train_mode(model):
        notes = (f"{subject.source} gave a model in train mode; it is evaluated in eval mode",)
        model.eval()
    classes = model.card.get("classes", ()) if isinstance(model, models.Classifier) else ()
    return _opened(model, {"factory": subject.source}, classes, notes)


def _opened(
    model: Any,
    described: dict[str, Any],
    classes: Sequence[str] = (),
    notes: tuple[str, ...] = (),
) -> Opened:
    """With a fingerprint of the weights, where it has any that can be seen."""
    state = model.state_dict() if isinstance(model, nn.Module) else None
    if state is None or not state and isinstance(model, torch.jit.ScriptModule):
        kind = "no nn.Module" if state is None else "a frozen script"
        notes += (f"the model is {kind}: whether it changed cannot be told at a resume",)
        state = None
    described["sha256"] = None if state is None else fingerprint(state)
    return Opened(model, described, tuple(classes), notes)


def _nothing_beside(subject: Subject, what: str) -> None:
    for f in fields(Subject):
        value = getattr(subject, f.name)
        if f.name != "source" and value:
            raise ConfigError(describe(f"model.{f.name}", f"nothing beside {what}", repr(value)))


_STAGE = re.compile(r"stage-(\d+)-")


def weight_file(folder: Path) -> Path:
    """The one model in a run's folder, or in a part of it: the weights its last stage ended with.

    Raises:
        ConfigError: there is none, or there are several; they are listed.
    """
    if (folder / "best.safetensors").is_file():
        return folder / "best.safetensors"
    last: dict[Path, Path] = {}
    for path in sorted(folder.rglob("best.safetensors"), key=_stage):
        if _STAGE.match(path.parent.name):
            last[path.parent.parent] = path
    finished = [path for path in last.values() if (path.parent / "result.json").is_file()]
    if len(finished) == 1 and len(last) == 1:
        return finished[0]
    if not last:
        fix = "Name a weight file, or a folder that python -m roli_fast.train wrote."
        raise ConfigError(describe("model", "a folder with a trained model", f"'{folder}'", fix))
    names = "\n".join(
        f"  {path}{'' if path in finished else ' (unfinished)'}" for path in last.values()
    )
    fix = f"Choose one with --model:\n{names}"
    raise ConfigError(describe("model", "one finished model", f"{len(last)} in '{folder}'", fix))


def _stage(path: Path) -> tuple[str, int]:
    found = _STAGE.match(path.parent.name)
    return str(path.parent.parent), int(found[1]) if found else 0

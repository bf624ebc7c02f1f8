"""Adversarial images in torchattacks' files: a dict of tensors written by torch.save."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from roli_fast.engine import InputGradient
from roli_fast.errors import ArgumentError, CheckpointError, describe
from roli_fast.files import naming, read_tensors
from roli_fast.norms import NORMS
from roli_fast.threat import as_pixels, check_images

if TYPE_CHECKING:
    from roli_fast.compat.torchattacks.attack import Attack

TYPES = ("float", "int")
IMAGES = ("adv_inputs", "clean_inputs")


def check_type(type: str, name: str = "type") -> None:
    """Raise unless `type` is "float" or "int"."""
    if type not in TYPES:
        raise ArgumentError(describe(name, "'float' or 'int'", repr(type)))


def collect(
    attack: "Attack", data_loader: DataLoader[Any], type: str, say: Callable[..., object]
) -> tuple[dict[str, Tensor], tuple[float, float, float]]:
    """All batches attacked, un-normalised and on the CPU, and the numbers of `Attack.save`.

    As "int" images are rounded before anything is measured.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in (*IMAGES, "labels", "preds")}
    distances, seconds = torch.zeros(0, dtype=torch.float64), 0.0
    accuracy = far = float("nan")
    for number, (inputs, labels) in enumerate(data_loader, start=1):
        start = time.perf_counter()
        given, labels = inputs.detach().to(attack.device), labels.to(attack.device)
        found, given = (in_pixels(attack, images) for images in (attack(given, labels), given))
        if type == "int":
            found = as_pixels(found, given).to(given.dtype) / 255
        with InputGradient(attack.view(eval_mode=True)) as engine:
            predicted = engine.evaluate(found, labels)[1].argmax(1)
        for name, value in zip(parts, (found, given, labels, predicted), strict=True):
            parts[name].append(value.cpu())
        distance = NORMS["l2"].distance(found, given)[predicted != labels]
        distances = torch.cat([distances, distance.cpu()])
        count = sum(map(len, parts["labels"]))
        accuracy = 100 * (count - len(distances)) / count
        far = distances.mean().item() if len(distances) else float("nan")
        seconds = time.perf_counter() - start
        shown = (number, len(data_loader), accuracy, far, seconds)
        say("batch %d of %d: robust accuracy %.2f %%, l2 %.5f, %.3f s", *shown)
    kept = {name: torch.cat(values) for name, values in parts.items() if values}
    return kept, (accuracy, far, seconds)


def in_pixels(attack: "Attack", images: Tensor) -> Tensor:
    """Images of a call, in [0, 1]."""
    if attack.normalization_used is None:
        return images
    return check_images(attack.inverse_normalize(images), (0.0, 1.0))


def names(predictions: bool, clean_inputs: bool) -> list[str]:
    """The tensors of a file, in the order of `load`."""
    more = {"preds": predictions, "clean_inputs": clean_inputs}
    return ["adv_inputs", "labels", *(name for name, wanted in more.items() if wanted)]


def write(path: str | Path, kept: Mapping[str, Tensor], wanted: list[str], type: str) -> None:
    """Write the tensors that are wanted, images as `type`."""
    saved: dict[str, Any] = {name: kept[name] for name in wanted}
    for name in set(wanted) & set(IMAGES) if type == "int" else ():
        saved[name] = as_pixels(kept[name], kept[name])
    torch.save({**saved, "save_type": type}, path)


def load(
    load_path: str | Path,
    batch_size: int = 128,
    shuffle: bool = False,
    normalize: Mapping[str, Any] | None = None,
    load_predictions: bool = False,
    load_clean_inputs: bool = False,
) -> DataLoader[Any]:
    """What `Attack.save` has written, ours or torchattacks', as batches of tensors.

    Args:
        load_path: the file; no code in it is executed.
        batch_size: of the batches.
        shuffle: in a new order at each pass.
        normalize: {"mean": ..., "std": ...} to normalise the images with.
        load_predictions: give the predicted classes too.
        load_clean_inputs: give the clean images too.

    Raises:
        CheckpointError: no such file, not of this kind, or without what is asked for.
    """
    wanted = names(load_predictions, load_clean_inputs)
    with naming(load_path, CheckpointError, "load_path", "a file of Attack.save"):
        saved = read_tensors(Path(load_path))
    known = saved if isinstance(saved, dict) else {}
    missing = [name for name in (*wanted, "save_type") if name not in known]
    if missing:
        got = f"'{load_path}' without {', '.join(missing)}"
        raise CheckpointError(describe("load_path", "a file of Attack.save", got))
    for name in IMAGES:
        if name not in wanted:
            continue
        if saved["save_type"] == "int":
            saved[name] = saved[name].float() / 255
        if normalize is not None:
            mean, std = (torch.tensor(normalize[n]).view(-1, 1, 1) for n in ("mean", "std"))
            saved[name] = (saved[name] - mean) / std
    data = TensorDataset(*[saved[name] for name in wanted])
    return DataLoader(data, batch_size=batch_size, shuffle=shuffle)

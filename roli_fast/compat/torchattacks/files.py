"""Adversarial images in torchattacks' files: a dict of tensors written by torch.save."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from roli_fast.errors import CheckpointError
from roli_fast.files import naming, read_tensors
from roli_fast.norms import NORMS
from roli_fast.threat import as_pixels

if TYPE_CHECKING:
    from roli_fast.compat.torchattacks.attack import Attack

IMAGES = ("adv_inputs", "clean_inputs")


def collect(
    attack: "Attack", data_loader: DataLoader[Any], type: str, say: Callable[..., object]
) -> tuple[dict[str, Tensor], tuple[float, float, float]]:
    """All batches attacked, un-normalised and on the CPU, and the numbers of `Attack.save`.

    As "int" images are rounded before anything is measured.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in (*IMAGES, "labels", "preds")}
    distances, seconds = torch.zeros(0, dtype=torch.float64), 0.0
    accuracy = far = float("nan")
    normalised = attack.normalization_used is not None
    for number, (inputs, labels) in enumerate(data_loader, start=1):
        start = time.perf_counter()
        given, labels = inputs.detach().to(attack.device), labels.to(attack.device)
        found = attack(given, labels)
        if normalised:
            found, given = (attack.inverse_normalize(some).clamp(0, 1) for some in (found, given))
        if type == "int":
            found = as_pixels(found, given).to(given.dtype) / 255
        seen = attack.normalize(found) if normalised else found
        predicted = attack.get_output_with_eval_nograd(seen).argmax(1)
        for name, value in zip(parts, (found, given, labels, predicted), strict=True):
            parts[name].append(value.cpu())
        distance = NORMS["l2"].distance(found, given)[predicted != labels]
        distances = torch.cat([distances, distance.cpu()])
        count = sum(map(len, parts["labels"]))
        accuracy = 100 * (count - len(distances)) / count
        far = distances.mean().item()
        seconds = time.perf_counter() - start
        shown = (number, len(data_loader), accuracy, far, seconds)
        say("batch %d of %d: robust accuracy %.2f %%, l2 %.5f, %.3f s", *shown)
    kept = {name: torch.cat(values) for name, values in parts.items() if values}
    return kept, (accuracy, far, seconds)


def names(predictions: bool, clean_inputs: bool) -> list[str]:
    """The tensors of a file, in the order of `load`."""
    more = {"preds": predictions, "clean_inputs": clean_inputs}
    return ["adv_inputs", "labels", *(name for name, wanted in more.items() if wanted)]


def write(path: str | Path, tensors: Mapping[str, Tensor], type: str) -> None:
    """Write the tensors, images as `type`."""
    as_type = {
        name: as_pixels(tensor, tensor) if type == "int" and name in IMAGES else tensor
        for name, tensor in tensors.items()
    }
    torch.save({**as_type, "save_type": type}, path)


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
    with naming(load_path, CheckpointError, "load_path", f"a file of Attack.save with {wanted}"):
        saved = read_tensors(Path(load_path))
        tensors = {name: saved[name] for name in wanted}
        for name in set(wanted) & set(IMAGES):
            if saved["save_type"] == "int":
                tensors[name] = tensors[name].float() / 255
            if normalize is not None:
                mean, std = (torch.tensor(normalize[n]).view(-1, 1, 1) for n in ("mean", "std"))
                tensors[name] = (tensors[name] - mean) / std
    return DataLoader(TensorDataset(*tensors.values()), batch_size=batch_size, shuffle=shuffle)

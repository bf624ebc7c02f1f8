"""The resume file of a stage: one safetensors file, replaced whole, so it is never half new.

It holds the trainable tensors and buffers, the optimiser's state, the best weights so far, and the
position. No random state: every draw is derived from the seed and the position.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from roli_fast.errors import CheckpointError, describe
from roli_fast.files import write_tensors

_META = "roli_fast_resume"


@dataclass
class Progress:
    """Where a stage stands.

    `epoch` and `step` name the next update; `step` equal to the steps of an epoch means that only
    the validation of that epoch is outstanding.
    """

    epoch: int = 0
    step: int = 0
    best_score: float = -1.0
    best_epoch: int = -1
    train_images: int = 0
    train_seconds: float = 0.0
    data_wait_seconds: float = 0.0
    epoch_sums: dict[str, float] = field(default_factory=dict)


def changing_tensors(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """What training can change: the trainable parameters and all buffers of the state dict."""
    parameters = {name for name, _ in model.named_parameters()}
    chosen = set(names)
    state = model.state_dict()
    return {n: t for n, t in state.items() if n in chosen or n not in parameters}


def copy_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached copies, later changes to the model do not reach them."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def save_resume(
    path: Path,
    *,
    model: Mapping[str, Tensor],
    best: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    """Write the resume file at once or not at all."""
    tensors = {f"model.{n}": t for n, t in model.items()}
    tensors |= {f"best.{n}": t for n, t in best.items()}
    plain: dict[str, dict[str, Any]] = {}
    for index, slots in optimizer.state_dict()["state"].items():
        for slot, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{slot}"] = value
            else:
                plain.setdefault(str(index), {})[slot] = value
    meta = json.dumps({"progress": asdict(progress), "optimizer": plain})
    write_tensors(path, tensors, {_META: meta})


@dataclass
class Resume:
    """What `load_resume` read."""

    model: dict[str, Tensor]
    best: dict[str, Tensor]
    optimizer: dict[int, dict[str, Any]]
    progress: Progress


def load_resume(path: Path) -> Resume:
    """Read a resume file.

    Raises:
        CheckpointError: it is damaged or something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {})[_META])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        progress = Progress(**meta["progress"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            describe(
                "resume",
                "a complete resume file of this version",
                f"'{path}': {error}",
                "Delete the stage's folder to train that stage again.",
            )
        ) from error
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    state = {int(i): dict(slots) for i, slots in meta["optimizer"].items()}
    for name, tensor in parts["optimizer"].items():
        index, _, slot = name.partition(".")
        state.setdefault(int(index), {})[slot] = tensor
    return Resume(parts["model"], parts["best"], state, progress)


def restore_tensors(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy saved tensors into `model`.

    Raises:
        CheckpointError: a name or a shape does not fit.
    """
    state = model.state_dict()
    wrong = [n for n, t in tensors.items() if n not in state or state[n].shape != t.shape]
    if wrong:
        raise CheckpointError(
            describe("resume", "tensors of this model", f"'{path}' with {', '.join(wrong[:5])}")
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Any]]) -> None:
    """Give the optimiser its saved state; groups and rates come from the configuration."""
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )

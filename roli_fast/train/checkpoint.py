"""The resume file of a stage: one safetensors file, replaced whole, so it is never half new.

It holds the trainable tensors and buffers, the optimiser's state, the best weights so far, the
position, and with gradient projection the same of its clean half. No random state: every draw is
derived from the seed and the position.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from roli_fast.configuration import Schema
from roli_fast.errors import CheckpointError, describe
from roli_fast.files import naming, parse_json, write_tensors

_META = "roli_fast_resume"
_OPTIMIZER = "optimizer"


@dataclass
class Progress:
    """Where a stage stands.

    `epoch`, `phase` and `step` name the next update. `step` equal to the steps of an epoch means
    that the phase has had its last one; `phase` equal to how many an epoch has, that only the
    validation of that epoch is outstanding. `counts` are those of the objective over the whole
    stage, `accuracies` what it was settled on: norm -> robust accuracy before the first update.
    `alignment` is SORA's moving average; null before its first update.
    """

    epoch: int = 0
    step: int = 0
    phase: int = 0
    best_score: float = -1.0
    best_epoch: int = -1
    train_images: int = 0
    train_seconds: float = 0.0
    data_wait_seconds: float = 0.0
    epoch_sums: dict[str, float] = field(default_factory=dict)
    counts: list[float] = field(default_factory=list)
    accuracies: dict[str, float] = field(default_factory=dict)
    alignment: float | None = None

    @property
    def speed(self) -> dict[str, float]:
        """Images a second, and the share of the time in which the loop waited for them."""
        return {
            "train_images_per_second": self.train_images / self.train_seconds,
            "data_wait_share": self.data_wait_seconds / self.train_seconds,
        }


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
    tensors: Mapping[str, Mapping[str, Tensor]],
    optimizers: Mapping[str, torch.optim.Optimizer],
    progress: Progress,
) -> None:
    """Write the resume file at once or not at all.

    Args:
        path: the file.
        tensors: part -> name -> tensor: "model", what trains, as it is; "best", the same of the
            best epoch; and whatever else is kept of the model.
        optimizers: by their names, the stage's own "".
        progress: where the stage stands.
    """
    flat = {f"{part}.{name}": t for part, own in tensors.items() for name, t in own.items()}
    for name, optimizer in optimizers.items():
        for index, slots in optimizer.state_dict()["state"].items():
            slots = {slot: value for slot, value in slots.items() if value is not None}
            flat |= {f"{name}{_OPTIMIZER}.{index}.{slot}": t for slot, t in slots.items()}
    write_tensors(path, flat, {_META: json.dumps(asdict(progress))})


@dataclass
class Resume:
    """What `load_resume` read, as `save_resume` was given it."""

    tensors: dict[str, dict[str, Tensor]]
    optimizers: dict[str, dict[int, dict[str, Tensor]]]
    progress: Progress


def explained(path: Path) -> AbstractContextManager[None]:
    """Whatever a resume file makes of the block is a CheckpointError that names it."""
    fix = "Delete the stage's folder to train that stage again."
    expected = "a complete resume file of this version"
    return naming(path, CheckpointError, "resume", expected, fix)


def load_resume(path: Path) -> Resume:
    """Read a resume file.

    Raises:
        CheckpointError: it is damaged or something else.
    """
    with explained(path):
        with safe_open(path, framework="pt") as file:
            meta = parse_json((file.metadata() or {})[_META])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}}
        optimizers: dict[str, dict[int, dict[str, Tensor]]] = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part.endswith(_OPTIMIZER):
                index, _, slot = rest.partition(".")
                state = optimizers.setdefault(part.removesuffix(_OPTIMIZER), {})
                state.setdefault(int(index), {})[slot] = tensor
            else:
                parts.setdefault(part, {})[rest] = tensor
        return Resume(parts, optimizers, Schema(Progress, {}).build(meta, []))


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
    put_tensors(model, tensors)


def put_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors of `changing_tensors` into `model`."""
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)


def restore_optimizer(
    optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Tensor]]
) -> None:
    """Give the optimiser its saved state; groups and rates come from the configuration."""
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )

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
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from roli_fast.configuration import Schema
from roli_fast.errors import CheckpointError, describe
from roli_fast.files import naming, parse_json, write_tensors

_META = "roli_fast_resume"
_OPTIMIZER = "optimizer"
_KEPT = "kept_"


@dataclass
class Progress:
    """Where a stage stands.

    `epoch`, `phase` and `step` name the next update. `step` equal to the steps of an epoch means
    that the phase has had its last one; `phase` equal to how many an epoch has, that only the
    validation of that epoch is outstanding. `counts` are those of the objective over the whole
    stage, `accuracies` what it was settled on: norm -> robust accuracy before the first update.
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
    kept: Mapping[str, Mapping[str, Tensor]] | None = None,
    others: Mapping[str, torch.optim.Optimizer] | None = None,
) -> None:
    """Write the resume file at once or not at all.

    Args:
        path: the file.
        model: what trains, as it is.
        best: the same of the best epoch.
        optimizer: the stage's.
        progress: where it stands.
        kept: further tensors of the model, by what they are.
        others: further optimisers, likewise; no name is "".
    """
    sets = {"model": model, "best": best}
    sets |= {f"{_KEPT}{name}": tensors for name, tensors in (kept or {}).items()}
    tensors = {f"{part}.{n}": t for part, own in sets.items() for n, t in own.items()}
    plain: dict[str, dict[str, dict[str, Any]]] = {}
    for name, one in {"": optimizer, **(others or {})}.items():
        part = plain[f"{name}{_OPTIMIZER}"] = {}
        for index, slots in one.state_dict()["state"].items():
            for slot, value in slots.items():
                if isinstance(value, Tensor):
                    tensors[f"{name}{_OPTIMIZER}.{index}.{slot}"] = value
                else:
                    part.setdefault(str(index), {})[slot] = value
    meta = json.dumps({"progress": asdict(progress), **plain})
    write_tensors(path, tensors, {_META: meta})


@dataclass
class Resume:
    """What `load_resume` read."""

    model: dict[str, Tensor]
    best: dict[str, Tensor]
    optimizer: dict[int, dict[str, Any]]
    progress: Progress
    kept: dict[str, dict[str, Tensor]]
    others: dict[str, dict[int, dict[str, Any]]]


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
        progress = Schema(Progress, {}).build(meta.pop("progress"), [])
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        states = {
            part.removesuffix(_OPTIMIZER): _state(plain, parts.pop(part, {}))
            for part, plain in meta.items()
        }
        return Resume(
            model=parts.pop("model"),
            best=parts.pop("best"),
            optimizer=states.pop(""),
            progress=progress,
            kept={part.removeprefix(_KEPT): own for part, own in parts.items()},
            others=states,
        )


def _state(
    plain: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor]
) -> dict[int, dict[str, Any]]:
    """The state of an optimiser, as its `load_state_dict` wants it."""
    state = {int(i): dict(slots) for i, slots in plain.items()}
    for name, tensor in tensors.items():
        index, _, slot = name.partition(".")
        state.setdefault(int(index), {})[slot] = tensor
    return state


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


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Any]]) -> None:
    """Give the optimiser its saved state; groups and rates come from the configuration."""
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )

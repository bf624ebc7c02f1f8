"""The resume file of a stage: one file of torch.save, replaced whole, so it is never half new.

It holds the trainable tensors and buffers, the optimisers' states, the best weights so far and the
position. No random state: every draw is derived from the seed and the position.
"""

import io
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from roli_fast.errors import CheckpointError
from roli_fast.files import naming, write_bytes

Tensors = dict[str, Tensor]


@dataclass
class Progress:
    """Where a stage stands.

    `epoch`, `phase` and `step` name the next update. `step` equal to the steps of an epoch means
    that the phase has had its last one; `phase` equal to how many an epoch has, that only the
    validation of that epoch is outstanding. `counts` are those of the objective over the whole
    stage, `accuracies` what it was settled on: norm -> robust accuracy before the first update.
    `clean_accuracies` are those that `EpsSchedule.share` asks for.
    `sora` is SORA's moving average, None before its first update; `alignments` has the mean of each
    epoch of single steps, `alarms` what the guard said, and `steps` the attack's after an alarm, 0
    for its own. `averaged` is how many updates the average has, `candidates` the validation
    accuracy of the best epoch's "raw" and "averaged" weights.
    `scores` are the validation accuracies by epoch, `accuracy` what the objective
    measured at the beginning of the epoch.
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
    clean_accuracies: list[float] = field(default_factory=list)
    sora: float | None = None
    alignments: dict[int, float] = field(default_factory=dict)
    alarms: list[str] = field(default_factory=list)
    steps: int = 0
    averaged: int = 0
    candidates: dict[str, float] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    accuracy: float | None = None

    @property
    def speed(self) -> dict[str, float]:
        """Images a second, and the share of the time in which the loop waited for them."""
        return {
            "train_images_per_second": self.train_images / self.train_seconds,
            "data_wait_share": self.data_wait_seconds / self.train_seconds,
        }


@dataclass
class Resume:
    """What a resume file holds.

    Args:
        progress: where the stage stands.
        tensors: part -> name -> tensor: "model", what trains, as it is; "best", the same of the
            best epoch; "averaged", its average; and whatever else is kept of the model.
        optimizers: name of a phase -> number of a parameter -> slot -> tensor.
    """

    progress: Progress
    tensors: dict[str, Tensors]
    optimizers: dict[str, dict[int, Tensors]]


def save_resume(
    path: Path,
    progress: Progress,
    tensors: Mapping[str, Mapping[str, Tensor]],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> None:
    """Write the resume file at once or not at all; the arguments are those of `Resume`."""
    saved = {
        "progress": asdict(progress),
        "tensors": tensors,
        "optimizers": {name: own.state_dict()["state"] for name, own in optimizers.items()},
    }
    buffer = io.BytesIO()  # torch.save tells a full disk in words of its own
    torch.save(saved, buffer)
    write_bytes(path, buffer.getbuffer())


def explained(path: Path) -> AbstractContextManager[None]:
    """Whatever a resume file makes of the block is a CheckpointError that names it."""
    fix = "Delete the stage's folder to train that stage again."
    expected = "a complete resume file of this version"
    return naming(path, CheckpointError, "resume", expected, fix)


def load_resume(path: Path) -> Resume:
    """Read a resume file, to the CPU.

    Raises:
        CheckpointError: it is damaged or something else.
    """
    with explained(path):
        saved = torch.load(path, map_location="cpu", weights_only=True)
        return Resume(Progress(**saved["progress"]), saved["tensors"], saved["optimizers"])


def changing_tensors(model: nn.Module, names: Iterable[str]) -> Tensors:
    """What training can change: the trainable parameters and all buffers of the state dict."""
    parameters = {name for name, _ in model.named_parameters()}
    chosen = set(names)
    state = model.state_dict()
    return {n: t for n, t in state.items() if n in chosen or n not in parameters}


def copy_tensors(tensors: Mapping[str, Tensor]) -> Tensors:
    """Detached copies: later changes of the model do not reach them."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def restore_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors of `changing_tensors` into `model`."""
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[int, Tensors]) -> None:
    """Give the optimiser its saved state; groups and rates come from the configuration."""
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})

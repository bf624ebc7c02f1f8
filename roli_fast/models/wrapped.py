"""Checkpoints as people publish them: the network's tensors inside containers and wrappers."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from roli_fast.errors import CheckpointError, describe
from roli_fast.models.layouts import Normalization

logger = logging.getLogger("roli_fast.models")

CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "model_ema")
CONTAINERS += ("ema_state_dict", "teacher")
"""Keys under which a checkpoint keeps a network's tensors; the first one there is taken."""

_WRAPPER = re.compile(r"(?:module|_orig_mod|model|net|network|backbone|\d+)\.")
"""One that holds the whole network: DataParallel, torch.compile, Sequential(normalise, net) ..."""

_PAIRS = {"std": "mean", "sigma": "mu", "new_std": "new_mean"}
"""Buffer of a normalisation's standard deviations -> of its means."""


def unwrapped(loaded: object, path: Path) -> tuple[dict[str, Tensor], Normalization | None]:
    """The network's own tensors, and the mean and std of a normalisation in front of it.

    What wraps the network is taken off where all tensors share it; a second copy of the network,
    as an attacker in the robustness library holds, is dropped where it is equal to the last bit.

    Raises:
        CheckpointError: no tensors by name, or two normalisations.
    """
    state = _contained(loaded, path)
    normalization, state = _normalization(state, path)
    while state:
        first = _WRAPPER.match(next(iter(state)))
        if first and all(name.startswith(first[0]) for name in state):
            state = {name.removeprefix(first[0]): tensor for name, tensor in state.items()}
        elif (rest := _without_twin(state)) is not state:
            state = rest
        else:
            break
    return state, normalization


def _contained(loaded: object, path: Path) -> dict[str, Tensor]:
    while isinstance(loaded, Mapping):
        there = [key for key in CONTAINERS if isinstance(loaded.get(key), Mapping)]
        if not there:
            break
        if len(there) > 1:
            text = "%s: it holds %s; taking %s"
            logger.warning(text, path.name, " and ".join(there), there[0])
        loaded = loaded[there[0]]
    if not isinstance(loaded, Mapping) or not all(isinstance(v, Tensor) for v in loaded.values()):
        got = f"'{path}' with other contents"
        if isinstance(loaded, Mapping):
            got += f" ({', '.join(str(key) for key in list(loaded)[:8])})"
        raise CheckpointError(describe("weights", "a state dict {name: tensor}", got))
    # a count that torch's AveragedModel keeps beside the module
    return {str(name): tensor for name, tensor in loaded.items() if name != "n_averaged"}


def _normalization(
    state: dict[str, Tensor], path: Path
) -> tuple[Normalization | None, dict[str, Tensor]]:
    """The values of normalisation buffers, and the other tensors."""
    found: set[Normalization] = set()
    used: set[str] = set()
    for name, std in state.items():
        place, dot, own = name.rpartition(".")
        mean = state.get(f"{place}{dot}{_PAIRS.get(own)}")
        if mean is None or std.numel() != 3 or mean.numel() != 3:
            continue
        values = [tuple(round(v, 6) for v in t.double().flatten().tolist()) for t in (mean, std)]
        if not all(0 <= v <= 1 for v in values[0]) or not all(0 < v <= 1 for v in values[1]):
            expected = "means in [0, 1] and standard deviations in (0, 1]"
            raise CheckpointError(describe("weights", expected, f"{values} in {name} of '{path}'"))
        found.add((values[0], values[1]))
        used |= {name, f"{place}{dot}{_PAIRS[own]}"}
    if len(found) > 1:
        raise CheckpointError(describe("weights", "one normalisation", f"{found} in '{path}'"))
    rest = {name: tensor for name, tensor in state.items() if name not in used}
    return (found.pop() if found else None), rest


def _without_twin(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` without an exact second copy of the rest under a name of its own ("attacker.")."""
    for top in dict.fromkeys(name.partition(".")[0] + "." for name in state):
        inside = {name: tensor for name, tensor in state.items() if name.startswith(top)}
        twins = (state.get(name.removeprefix(top)) for name in inside)
        if len(inside) * 2 == len(state) and all(
            twin is not None and twin.dtype == tensor.dtype and torch.equal(twin, tensor)
            for twin, tensor in zip(twins, inside.values(), strict=True)
        ):
            return {name: tensor for name, tensor in state.items() if name not in inside}
    return state

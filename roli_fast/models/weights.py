"""Weight files: read safely, load strictly, write atomically.

A file holds plain timm names, so it opens in timm too; our own files carry a "roli_fast" card
(architecture, options, normalisation, classes) in their metadata.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from roli_fast.errors import CheckpointError, describe
from roli_fast.files import write_tensors

CARD = "roli_fast"


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors, .pth, .pt or .bin file, never executing code from it.

    A dict under "model", "state_dict" or "model_state_dict" is opened, and "module." prefixes of
    DataParallel are removed.

    Raises:
        CheckpointError: the file is missing, truncated, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            describe("weights", "an existing .safetensors or .pth file", f"'{path}'")
        )
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(_unreadable(path, error)) from error
    except Exception as error:  # pickle.UnpicklingError and whatever a damaged pickle raises
        raise CheckpointError(_unreadable(path, error)) from error
    return _plain(loaded, path)


def _unreadable(path: Path, error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return describe(
        "weights",
        "a complete file of tensors",
        f"'{path}' ({path.stat().st_size} bytes): {reason}",
        "It may be truncated: copy or download it again.",
    )


def _plain(loaded: object, path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise CheckpointError(
            describe("weights", "a state dict {name: tensor}", f"'{path}' with other contents")
        )
    return {str(name).removeprefix("module."): tensor for name, tensor in loaded.items()}


def read_card(path: str | Path) -> dict[str, Any]:
    """The architecture card of one of our own files; empty for any other file."""
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {}).get(CARD, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(_unreadable(path, error)) from error


def load_backbone(model: nn.Module, path: str | Path, *, with_head: bool = False) -> None:
    """Load a file into `model.backbone`, strictly.

    Without `with_head` the model keeps its own head, and only there may the file differ.

    Raises:
        CheckpointError: listing every missing, unknown and misshapen tensor.
    """
    backbone: nn.Module = model.get_submodule("backbone")
    head = str(model.head_name).removeprefix("backbone.") + "."  # type: ignore[attr-defined]
    state = read_state_dict(path)
    target = backbone.state_dict()
    if not with_head:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(head)}
        target = {name: tensor for name, tensor in target.items() if not name.startswith(head)}
    _check_fit(state, target, Path(path))
    backbone.load_state_dict(state, strict=with_head)


def _check_fit(state: Mapping[str, Tensor], target: Mapping[str, Tensor], path: Path) -> None:
    problems = [f"missing {name}" for name in target if name not in state]
    problems += [f"unknown {name}" for name in state if name not in target]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, the model's is {tuple(target[name].shape)}"
        for name in target
        if name in state and state[name].shape != target[name].shape
    ]
    if problems:
        shown = "; ".join(problems[:6]) + ("; ..." if len(problems) > 6 else "")
        raise CheckpointError(
            describe(
                "weights",
                "a file whose tensors match the model",
                f"'{path}' with {len(problems)} differences: {shown}",
                "Check model.name and model.options (img_size, patch_size, embed_dim, depth ...).",
            )
        )


def save_model(model: nn.Module, path: str | Path, *, classes: tuple[str, ...] = ()) -> None:
    """Write backbone and head under timm's names, with the architecture card, atomically."""
    outputs = model.head.out_features  # type: ignore[union-attr]
    card = {**model.card, "classes": list(classes), "num_classes": outputs}  # type: ignore[dict-item]
    backbone: nn.Module = model.get_submodule("backbone")
    write_tensors(Path(path), backbone.state_dict(), {CARD: json.dumps(card)})


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

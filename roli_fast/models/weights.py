"""Weight files: read safely, load strictly, write atomically.

Our own files hold plain timm names, so they open in timm too, and carry a "roli_fast" card
(architecture, options, normalisation, classes) in their metadata. Files of others may have other
names for the same tensors: see `layouts`.
"""

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from roli_fast.errors import CheckpointError, describe
from roli_fast.files import write_tensors
from roli_fast.models.layouts import LAYOUTS, Layout, is_recomputed, to_timm

CARD = "roli_fast"

logger = logging.getLogger("roli_fast.models")


@dataclass(frozen=True, eq=False)
class WeightFile:
    """A weight file that was read: timm's names, the layout it had, and its card."""

    path: Path
    state: dict[str, Tensor] = field(repr=False)
    layout: Layout
    card: dict[str, Any]


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


def read_card(path: str | Path, key: str = CARD) -> dict[str, Any]:
    """The card under `key` of one of our own files, the architecture's; empty for other files."""
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {}).get(key, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(_unreadable(path, error)) from error


def read_weights(path: str | Path) -> WeightFile:
    """Read a file of any known layout.

    Raises:
        CheckpointError: the file is missing, truncated, or holds something else.
    """
    layout, state = to_timm(read_state_dict(path))
    return WeightFile(Path(path), state, layout, read_card(path))


def load_backbone(
    model: nn.Module, weights: str | Path | WeightFile, *, with_head: bool = False
) -> None:
    """Load a file into `model.backbone`, strictly.

    Without `with_head` the model keeps its own head. Only the head and the buffers that timm
    computes (attn_mask, relative_position_index) may differ. A learned position embedding of
    another image size is resampled with timm's own function, and the log says so.

    Raises:
        CheckpointError: listing the missing, unknown and misshapen tensors.
    """
    file = weights if isinstance(weights, WeightFile) else read_weights(weights)
    backbone: nn.Module = model.get_submodule("backbone")
    target = backbone.state_dict()
    state = {name: t for name, t in file.state.items() if name in target or not is_recomputed(name)}
    if not with_head:
        head = str(model.head_name).removeprefix("backbone.") + "."  # type: ignore[attr-defined]
        state = {name: tensor for name, tensor in state.items() if not name.startswith(head)}
        target = {name: tensor for name, tensor in target.items() if not name.startswith(head)}
    _fit_positions(state, target, backbone, file.path)
    _check_fit(state, target, file)
    backbone.load_state_dict(state, strict=with_head)


def _fit_positions(
    state: dict[str, Tensor], target: Mapping[str, Tensor], backbone: nn.Module, path: Path
) -> None:
    """Resample `pos_embed` (1, tokens, D) of a square grid to the grid of the model, in place."""
    old, new = state.get("pos_embed"), target.get("pos_embed")
    grid = getattr(getattr(backbone, "patch_embed", None), "grid_size", None)
    if old is None or new is None or old.shape == new.shape or not grid or old.ndim != 3:
        return
    extra = new.shape[1] - math.prod(grid)  # class and register tokens have no place in the grid
    side = math.isqrt(max(old.shape[1] - extra, 0))
    if old.shape[2] != new.shape[2] or not side or side * side + extra != old.shape[1]:
        return  # refused as misshapen
    sizes = {"new_size": list(grid), "old_size": [side, side]}
    resample: Any = resample_abs_pos_embed  # torch.fx.wrap hides its type
    state["pos_embed"] = resample(old, **sizes, num_prefix_tokens=extra)
    shapes = f"from {side}x{side} to {grid[0]}x{grid[1]} patches"
    logger.info("%s: position embedding resampled %s (bicubic)", path.name, shapes)


def _check_fit(state: Mapping[str, Tensor], target: Mapping[str, Tensor], file: WeightFile) -> None:
    kinds = (
        [f"missing {name}" for name in target if name not in state],
        [f"unknown {name}" for name in state if name not in target],
        [
            f"{name} has shape {tuple(state[name].shape)}, the model's is {tuple(new.shape)}"
            for name, new in target.items()
            if name in state and state[name].shape != new.shape
        ],
    )
    total = sum(map(len, kinds))
    if not total:
        return
    shown = "; ".join(text for found in kinds for text in found[:3])
    if any(len(found) > 3 for found in kinds):
        shown += "; ..."
    read_as = file.layout.name
    if not file.layout.marks:  # nothing was recognised
        read_as += f" (it has none of: {', '.join(layout.name for layout in LAYOUTS)})"
    raise CheckpointError(
        describe(
            "weights",
            "a file whose tensors match the model",
            f"'{file.path}' with {total} differences: {shown}",
            f"It was read as {read_as}. {_what_it_is(file.card)}",
        )
    )


def _what_it_is(card: Mapping[str, Any]) -> str:
    """Which fields to set; a file of ours knows their values."""
    if not card:
        return "Check model.name and model.options (img_size, patch_size, embed_dim, depth ...)."
    return f"It was saved with model.name {card['name']} and model.options {card['options']}."


def save_model(model: nn.Module, path: str | Path, *, classes: tuple[str, ...] = ()) -> None:
    """Write backbone and head under timm's names, with the architecture card, atomically."""
    outputs = model.head.out_features  # type: ignore[union-attr]
    card = {**model.card, "classes": list(classes), "num_classes": outputs}  # type: ignore[dict-item]
    backbone: nn.Module = model.get_submodule("backbone")
    write_tensors(Path(path), backbone.state_dict(), {CARD: json.dumps(card)})


def fingerprint(state: Mapping[str, Any]) -> str:
    """sha256 over names, types, shapes and values."""
    digest, tensors = hashlib.sha256(), plain_tensors(state)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def plain_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """All that a state dict holds, by name: what quantised layers and `get_extra_state` put there
    as well, containers by their entries, and other values by their `repr` where it tells them."""
    found: dict[str, Tensor] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Tensor) and value.is_quantized:
            found[name] = value.int_repr()
            if value.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
                add(f"{name}.scale", (value.q_scale(), value.q_zero_point()))
            else:
                scales = value.q_per_channel_scales(), value.q_per_channel_zero_points()
                add(f"{name}.scale", scales)
        elif isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, (Mapping, list, tuple)):
            entries = value.items() if isinstance(value, Mapping) else enumerate(value)
            for key, entry in entries:
                add(f"{name}.{key}", entry)
        else:
            words = repr(value) if isinstance(value, _TOLD_BY_REPR) else type(value).__qualname__
            found[name] = torch.tensor(list(words.encode()), dtype=torch.uint8)

    for name, value in state.items():
        add(name, value)
    return found


_TOLD_BY_REPR = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)

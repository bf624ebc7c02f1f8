"""Weight files: read safely, load strictly, write atomically.

Our own files hold plain timm names, so they open in timm too, and carry a "roli_fast" card
(architecture, options, normalisation, classes) in their metadata. Files of others may have other
names for the same tensors: see `layouts`.
"""

import hashlib
import json
import logging
import math
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from roli_fast.errors import CheckpointError, describe
from roli_fast.files import naming, parse_json, read_tensors, unreadable, write_tensors
from roli_fast.models.layouts import LAYOUTS, Layout, Normalization, is_recomputed, to_timm
from roli_fast.models.wrapped import unwrapped

CARD = "roli_fast"

logger = logging.getLogger("roli_fast.models")


@dataclass(frozen=True, eq=False)
class WeightFile:
    """A weight file that was read: timm's names, the layout it had, its card, and the mean and std
    of the normalisation that stood in front of the network."""

    path: Path
    state: dict[str, Tensor] = field(repr=False)
    layout: Layout
    card: dict[str, Any]
    normalization: Normalization | None = None


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors, .pth, .pt or .bin file, never executing code from it.

    Containers ("state_dict", "model", ...) are opened, and what wraps the whole network is taken
    off ("module." of DataParallel, ...; see `wrapped`).

    Raises:
        CheckpointError: the file is missing, truncated, or holds something else.
    """
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[dict[str, Tensor], Normalization | None]:
    if not path.is_file():
        raise CheckpointError(
            describe("weights", "an existing .safetensors or .pth file", f"'{path}'")
        )
    loaded = read_tensors(path)
    return (loaded, None) if read_card(path) else unwrapped(loaded, path)


def check_finite(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise CheckpointError for a NaN or an infinity, with the tensor's name."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            got = f"{int((~tensor.isfinite()).sum()):,} in {name} of '{path}'"
            fix = "The training that wrote it diverged: take an earlier checkpoint."
            raise CheckpointError(describe("weights", "no NaN and no infinity", got, fix))


def read_card(path: str | Path, key: str = CARD) -> dict[str, Any]:
    """The card under `key` of one of our own files, the architecture's; empty for other files.

    Raises:
        CheckpointError: the file is damaged, or the card is not one that `save_model` writes.
    """
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(key)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(unreadable(path, error)) from error
    with naming(path, CheckpointError, "weights", "a card that this package wrote"):
        card = {} if text is None else parse_json(text)
        if not isinstance(card, dict):
            raise ValueError(f"its card is {type(card).__name__}")
        for name, fits in (_FIELDS if key == CARD and card else {}).items():
            if not fits(card[name]):
                raise ValueError(f"`{name}` is {card[name]!r}")
        return card


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_list_of(kind: type | tuple[type, ...], value: object) -> bool:
    """Texts, or finite numbers."""
    return isinstance(value, list) and all(
        isinstance(v, kind) and (isinstance(v, str) or math.isfinite(v)) for v in value
    )


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "name": lambda value: isinstance(value, str),
    "options": lambda value: isinstance(value, dict),
    "mean": partial(_is_list_of, (int, float)),
    "std": lambda value: _is_list_of((int, float), value) and all(v > 0 for v in value),
    "resize": lambda value: value is None or _is_count(value),
    "num_classes": _is_count,
    "classes": partial(_is_list_of, str),
}
"""Field of the card of an architecture -> whether a value can be one."""


def read_weights(path: str | Path) -> WeightFile:
    """Read a file of any known layout.

    Raises:
        CheckpointError: the file is missing, truncated, or holds something else.
    """
    own, normalization = _read(Path(path))
    layout, state = to_timm(own)
    return WeightFile(Path(path), state, layout, read_card(path), normalization)


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
    check_finite(state, file.path)
    backbone.load_state_dict(state, strict=with_head)


def _fit_positions(
    state: dict[str, Tensor], target: Mapping[str, Tensor], backbone: nn.Module, path: Path
) -> None:
    """Resample tables of positions of another image size in place, by timm's own filter of the
    architecture's checkpoints."""
    places = {  # a patch embedding of another size is another network
        name
        for name, new in target.items()
        if name in state and state[name].shape != new.shape and "patch_embed" not in name
    }
    resample: Any = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if not places or not resample:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of how timm writes it
            fitted = resample(dict(state), backbone)
    except Exception as error:  # whatever it makes of a file that does not fit: told as misshapen
        logger.debug("%s: %s", path.name, error)
        return
    done = [n for n in places if n in fitted and fitted[n].shape == target[n].shape]
    for name in done:
        shapes = f"from {tuple(state[name].shape)} to {tuple(target[name].shape)}"
        logger.info("%s: %s resampled %s (bicubic)", path.name, name, shapes)
        state[name] = fitted[name]


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
    unknown = [name for name in state if name not in target]
    ends = (u.removesuffix(m) for m in target if m not in state for u in unknown if u.endswith(m))
    if (prefix := next(ends, "")).endswith("."):
        shown += f". Its names begin with '{prefix}': take that off"
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

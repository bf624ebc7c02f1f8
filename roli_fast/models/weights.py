"""Weight files: read safely, load strictly, write atomically.

Our own files hold plain timm names, so they open in timm too, and carry a "roli_fast" card
(architecture, options, normalisation, classes) in their metadata. Files of others may have other
names for the same tensors: see `layouts`.
"""

import hashlib
import json
import logging
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from roli_fast.errors import CheckpointError, describe
from roli_fast.files import naming, parse_json, read_tensors, unreadable, write_tensors
from roli_fast.models.classifier import Classifier
from roli_fast.models.layouts import (
    LAYOUTS,
    Layout,
    Normalization,
    is_recomputed,
    to_timm,
    unwrapped,
)

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
    off ("module." of DataParallel, ...; see `layouts.unwrapped`).

    Raises:
        CheckpointError: the file is missing, truncated, or holds something else.
    """
    return _read(Path(path))[0]


def read_weights(path: str | Path) -> WeightFile:
    """Read a file of any known layout.

    Raises:
        CheckpointError: as `read_state_dict`.
    """
    own, normalization = _read(Path(path))
    layout, state = to_timm(own)
    return WeightFile(Path(path), state, layout, read_card(path), normalization)


def _read(path: Path) -> tuple[dict[str, Tensor], Normalization | None]:
    if not path.is_file():
        raise CheckpointError(
            describe("weights", "an existing .safetensors or .pth file", f"'{path}'")
        )
    loaded = read_tensors(path)
    return (loaded, None) if read_card(path) else unwrapped(loaded, path)


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
        return card


def check_finite(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise CheckpointError for a NaN or an infinity, with the tensor's name."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            got = f"{int((~tensor.isfinite()).sum()):,} in {name} of '{path}'"
            fix = "The training that wrote it diverged: take an earlier checkpoint."
            raise CheckpointError(describe("weights", "no NaN and no infinity", got, fix))


def load_backbone(
    model: Classifier, weights: str | Path | WeightFile, *, with_head: bool = False
) -> None:
    """Load a file into `model.backbone`, strictly.

    Without `with_head` the model keeps its own head. Only the head and the buffers that timm
    computes (attn_mask, relative_position_index) may differ. A learned position embedding of
    another image size is resampled with timm's own function, and the log says so.

    Raises:
        CheckpointError: listing the missing, unknown and misshapen tensors.
    """
    file = weights if isinstance(weights, WeightFile) else read_weights(weights)
    target = model.backbone.state_dict()
    head = model.head_name.removeprefix("backbone.") + "."
    state = _through_timm(file.state, target, head, model.backbone)
    state = {name: t for name, t in state.items() if name in target or not is_recomputed(name)}
    if not with_head:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(head)}
        target = {name: tensor for name, tensor in target.items() if not name.startswith(head)}
    _fit_positions(state, target, model.backbone, file.path)
    _check_fit(state, target, file)
    check_finite(state, file.path)
    model.backbone.load_state_dict(state, strict=with_head)


def _filtered(state: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor] | None:
    """What timm's own filter of the architecture's checkpoints makes of them; None where it has
    none, or cannot."""
    convert: Any = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of how timm writes it
            return convert(dict(state), backbone)
    except Exception as error:  # whatever it makes of a file that does not fit: told as such
        logger.debug("timm's filter: %s", error)
        return None


def _through_timm(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor], head: str, backbone: nn.Module
) -> Mapping[str, Tensor]:
    """`state` under the names of `target`, by timm's filter where that brings a name that was
    missing; of open_clip's two towers the one of images is left."""

    def missing(names: Mapping[str, Tensor]) -> int:
        return sum(name not in names for name in target if not name.startswith(head))

    converted = _filtered(state, backbone) if missing(state) else None
    if converted is None or missing(converted) >= missing(state):
        return state
    kernels = {tensor.shape for tensor in state.values() if tensor.ndim == 4}
    resized = any(t.ndim == 4 and t.shape not in kernels for t in converted.values())
    return state if resized else converted  # patches of another size are another network


def _fit_positions(
    state: dict[str, Tensor], target: Mapping[str, Tensor], backbone: nn.Module, path: Path
) -> None:
    """Resample tables of positions of another image size in place, by timm's own filter."""
    places = [  # a patch embedding of another size is another network
        name
        for name, new in target.items()
        if name in state and state[name].shape != new.shape and "patch_embed" not in name
    ]
    fitted = (_filtered(state, backbone) if places else None) or {}
    for name in places:
        if name in fitted and fitted[name].shape == target[name].shape:
            shapes = f"from {tuple(state[name].shape)} to {tuple(target[name].shape)}"
            logger.info("%s: %s resampled %s (bicubic)", path.name, name, shapes)
            state[name] = fitted[name]


def _check_fit(state: Mapping[str, Tensor], target: Mapping[str, Tensor], file: WeightFile) -> None:
    missing = [name for name in target if name not in state]
    unknown = [name for name in state if name not in target]
    kinds = (
        [f"missing {name}" for name in missing],
        [f"unknown {name}" for name in unknown],
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
    prefix = next((u.removesuffix(m) for m in missing for u in unknown if u.endswith(f".{m}")), "")
    if prefix:
        shown += f". Its names begin with '{prefix}': take that off"
    if any(len(found) > 3 for found in kinds):
        shown += "; ..."
    read_as = file.layout.name
    if not file.layout.marks:  # nothing was recognised
        read_as += f" (it has none of: {', '.join(layout.name for layout in LAYOUTS)})"
    fix = "Check model.name and model.options (img_size, patch_size, embed_dim, depth ...)."
    if card := file.card:
        fix = f"It was saved with model.name {card['name']} and model.options {card['options']}."
    got = f"'{file.path}' with {total} differences: {shown}"
    fix = f"It was read as {read_as}. {fix}"
    raise CheckpointError(describe("weights", "a file whose tensors match the model", got, fix))


def save_model(model: Classifier, path: str | Path, *, classes: tuple[str, ...] = ()) -> None:
    """Write backbone and head under timm's names, with the architecture card, atomically."""
    card = {**model.card, "classes": list(classes), "num_classes": model.head.out_features}
    card |= {"image_size": model.image_size} if model.image_size else {}
    write_tensors(Path(path), model.backbone.state_dict(), {CARD: json.dumps(card)})


def fingerprint(state: Mapping[str, Any]) -> str:
    """sha256 over names, types, shapes and values."""
    digest, tensors = hashlib.sha256(), plain_tensors(state)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def plain_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """All that a state dict holds, by name: what quantised layers and `get_extra_state` put there
    as well, containers by their entries, and other values by their `repr` where it tells them."""
    found: dict[str, Tensor] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            found[name] = value.dequantize() if value.is_quantized else value
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

"""Checkpoints as people publish them: what stands around the tensors, and others' names for them.

A layout is recognised by keys that no other one has. Only names change on the way to timm: every
tensor keeps its values, shape and order of rows (torchvision and timm both stack q, k, v; Microsoft
and timm both merge patches in the order (0,0) (1,0) (0,1) (1,1)). What is left then, open_clip's
names say, goes through the filter that timm has for its architecture (`weights.load_backbone`).
"""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from roli_fast import zoo
from roli_fast.errors import CheckpointError, describe

logger = logging.getLogger("roli_fast.models")

Normalization = tuple[tuple[float, ...], tuple[float, ...]]

IMAGENET: Normalization = zoo.NORMALIZATIONS["imagenet"]
CLIP: Normalization = zoo.NORMALIZATIONS["clip"]


@dataclass(frozen=True)
class Layout:
    """One way of naming a network's tensors.

    Args:
        name: what a person calls it.
        marks: keys that a file of this layout always has, and one of another layout never.
        renames: (pattern, replacement) in order; the first that matches a whole key is taken.
        normalization: what all published files of this layout were trained with; None where
            that cannot be told from the names.
    """

    name: str
    marks: tuple[str, ...]
    renames: tuple[tuple[str, str], ...]
    normalization: Normalization | None

    def timm_name(self, key: str) -> str:
        """timm's name of a key, or the key itself."""
        for pattern, replacement in self.renames:
            match = re.fullmatch(pattern, key)
            if match:
                return match.expand(replacement)
        return key


_TORCHVISION_BLOCK = r"encoder\.layers\.encoder_layer_(\d+)\."

TIMM = Layout("timm's names", (), (), None)

TORCHVISION_VIT = Layout(
    "torchvision's ViT names",
    ("conv_proj.weight", "encoder.pos_embedding"),
    (
        (r"class_token", r"cls_token"),
        (r"encoder\.pos_embedding", r"pos_embed"),
        (r"conv_proj\.(\w+)", r"patch_embed.proj.\1"),
        (r"encoder\.ln\.(\w+)", r"norm.\1"),
        (r"heads\.head\.(\w+)", r"head.\1"),
        (_TORCHVISION_BLOCK + r"ln_([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
        (_TORCHVISION_BLOCK + r"self_attention\.in_proj_(\w+)", r"blocks.\1.attn.qkv.\2"),
        (_TORCHVISION_BLOCK + r"self_attention\.out_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
        # linear_1 and linear_2 in the published file, numbers in a Sequential since 0.14
        (_TORCHVISION_BLOCK + r"mlp\.(?:linear_1|0)\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
        (_TORCHVISION_BLOCK + r"mlp\.(?:linear_2|3)\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    ),
    IMAGENET,
)

_STAGES = 8  # Swin has four; a pattern cannot count

SWIN = Layout(
    "Swin names of Microsoft, ARES and timm before 0.9",
    ("layers.0.downsample.reduction.weight",),
    (
        # downsampling closed stage i; timm now opens stage i + 1 with it
        *(
            (rf"layers\.{stage}\.downsample\.(.+)", rf"layers.{stage + 1}.downsample.\1")
            for stage in range(_STAGES)
        ),
        (r"head\.(weight|bias)", r"head.fc.\1"),
    ),
    IMAGENET,
)

_MOBILENET_STAGES = (1, 2, 3, 4, 3, 3, 1)
"""Blocks in each stage of MobileNetV2; torchvision counts them through."""


def _mobilenet_renames() -> Iterator[tuple[str, str]]:
    for here, there in (
        (r"features\.0\.0", "conv_stem"),
        (r"features\.0\.1", "bn1"),
        (r"features\.18\.0", "conv_head"),
        (r"features\.18\.1", "bn2"),
        (r"classifier\.1", "classifier"),
    ):
        yield rf"{here}\.(\w+)", rf"{there}.\1"
    number = 0
    for stage, blocks in enumerate(_MOBILENET_STAGES):
        parts = ("conv_dw", "bn1"), ("conv_pw", "bn2")
        if stage:  # the first block does not widen
            parts = ("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")
        for block in range(blocks):
            number += 1
            here, there = rf"features\.{number}\.conv\.", f"blocks.{stage}.{block}."
            for place, (convolution, norm) in enumerate(parts[:-1]):
                yield rf"{here}{place}\.0\.(\w+)", rf"{there}{convolution}.\1"
                yield rf"{here}{place}\.1\.(\w+)", rf"{there}{norm}.\1"
            last = len(parts) - 1  # a convolution and a norm that stand by themselves
            yield rf"{here}{last}\.(\w+)", rf"{there}{parts[-1][0]}.\1"
            yield rf"{here}{last + 1}\.(\w+)", rf"{there}{parts[-1][1]}.\1"


MOBILENET = Layout(
    "torchvision's MobileNetV2 names",
    ("features.1.conv.0.0.weight", "features.18.0.weight"),
    tuple(_mobilenet_renames()),
    IMAGENET,
)

OPEN_CLIP = Layout("open_clip's names", ("visual.class_embedding",), (), CLIP)
OPEN_CLIP_TOWER = Layout(
    "the names of open_clip's image tower",
    ("class_embedding", "ln_pre.weight", "conv1.weight"),
    ((r"(.+)", r"visual.\1"),),
    CLIP,
)
OPEN_CLIP_CONVNEXT = Layout(
    "open_clip's names of timm's ConvNeXt", ("visual.trunk.stem.0.weight",), (), CLIP
)

LAYOUTS = (
    TORCHVISION_VIT,
    SWIN,
    MOBILENET,
    OPEN_CLIP,
    OPEN_CLIP_TOWER,
    OPEN_CLIP_CONVNEXT,
)

_RECOMPUTED = re.compile(r"(?:.*\.)?(?:attn_mask|relative_position_index)")


def layout_of(state: Mapping[str, Tensor]) -> Layout:
    """The layout whose marks `state` has; timm's names where there is none."""
    return next((one for one in LAYOUTS if all(mark in state for mark in one.marks)), TIMM)


def is_recomputed(key: str) -> bool:
    """Whether older files store under `key` a buffer that follows from the architecture."""
    return _RECOMPUTED.fullmatch(key) is not None


def to_timm(state: Mapping[str, Tensor]) -> tuple[Layout, dict[str, Tensor]]:
    """The layout that a state dict is recognised by, and {timm's name: tensor}.

    Raises:
        CheckpointError: two tensors would get one name.
    """
    layout = layout_of(state)
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = layout.timm_name(key)
        if name in renamed:
            got = f"a second tensor for {name} ({key})"
            raise CheckpointError(describe("weights", f"one set of {layout.name}", got))
        renamed[name] = tensor
    return layout, renamed


CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "model_ema")
CONTAINERS += ("ema_state_dict", "teacher")
"""Keys under which a checkpoint keeps a network's tensors; the first one there is taken."""

_WRAPPER = re.compile(r"(?:module|_orig_mod|model|net|network|backbone|\d+)\.")
"""One that holds the whole network: DataParallel, torch.compile, Sequential(normalise, net) ..."""

ATTACKER = "attacker."
"""What the robustness library puts before the second copy of a network."""

_PAIRS = {"std": "mean", "sigma": "mu", "new_std": "new_mean"}
"""Buffer of a normalisation's standard deviations -> of its means."""


def unwrapped(loaded: object, path: Path) -> tuple[dict[str, Tensor], Normalization | None]:
    """The network's own tensors, and the mean and std of a normalisation in front of it.

    What wraps the network is taken off where all tensors share it; the second copy of the network
    that the robustness library's attacker holds is dropped.

    Raises:
        CheckpointError: no tensors by name, or two normalisations.
    """
    state = _contained(loaded, path)
    normalization, state = _normalization(state, path)
    while state:
        first = _WRAPPER.match(next(iter(state)))
        if first and all(name.startswith(first[0]) for name in state):
            state = {name.removeprefix(first[0]): tensor for name, tensor in state.items()}
        elif any(name.startswith(ATTACKER) for name in state):
            state = {name: t for name, t in state.items() if not name.startswith(ATTACKER)}
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
        other = f"{place}{dot}{_PAIRS.get(own)}"
        mean = state.get(other)
        if mean is None or std.numel() != 3 or mean.numel() != 3:
            continue
        values = [tuple(round(v, 6) for v in t.double().flatten().tolist()) for t in (mean, std)]
        found.add((values[0], values[1]))
        used |= {name, other}
    if len(found) > 1 or any(max(*mean, *std) > 1 for mean, std in found):
        expected = "one normalisation of images in [0, 1]"
        raise CheckpointError(describe("weights", expected, f"{sorted(found)} in '{path}'"))
    rest = {name: tensor for name, tensor in state.items() if name not in used}
    return (found.pop() if found else None), rest

"""The names under which others publish the same networks, and timm's names for them.

A layout is recognised by keys that no other one has. Only names change on the way to timm: every
tensor keeps its values, shape and order of rows (torchvision and timm both stack q, k, v; Microsoft
and timm both merge patches in the order (0,0) (1,0) (0,1) (1,1)).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from roli_fast.errors import CheckpointError, describe

Normalization = tuple[tuple[float, ...], tuple[float, ...]]

IMAGENET: Normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Channel means and standard deviations of ImageNet."""


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

LAYOUTS = (TORCHVISION_VIT, SWIN)

_RECOMPUTED = re.compile(r"(?:.*\.)?(?:attn_mask|relative_position_index)")


def layout_of(state: Mapping[str, Tensor]) -> Layout:
    """The layout whose marks `state` has; timm's names where there is none."""
    return next((one for one in LAYOUTS if all(mark in state for mark in one.marks)), TIMM)


def is_recomputed(key: str) -> bool:
    """Whether older files store under `key` a buffer that follows from the architecture."""
    return _RECOMPUTED.fullmatch(key) is not None


def to_timm(state: Mapping[str, Tensor]) -> tuple[Layout, dict[str, Tensor]]:
    """Give a state dict timm's names.

    Returns:
        The layout that was recognised, and {timm's name: tensor}.

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

"""What is published where, one row a file, and where these files lie on this machine.

No row was downloaded when this table was written: addresses, architectures and accuracies are
their publishers' statements, named in `source`. Where a publisher gives no sha256, there is none.
"""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from roli_fast.errors import ArgumentError, CheckpointError, describe

PREFIX = "zoo:"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One published weight file.

    Args:
        name: what `get` and `zoo:NAME` call it.
        architecture: the timm architecture that it fits.
        url: where its publisher offers it.
        sha256: of the file, in hex; fewer than 64 digits where the publisher tells only the
            first ones; empty where it tells none.
        mean: channel means of the normalisation that it was trained with.
        std: channel standard deviations likewise.
        trained_for: the threat model of its training, "linf 4/255", or "clean".
        clean: reported clean top-1 accuracy on ImageNet in percent.
        robust: reported AutoAttack top-1 accuracy under `trained_for` in percent; None for clean.
        source: who reports these numbers, and how they were measured.
    """

    name: str
    architecture: str
    url: str
    sha256: str = ""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    trained_for: str = "clean"
    clean: float
    robust: float | None = None
    source: str

    @property
    def file(self) -> str:
        """The file's own name."""
        return self.url.rsplit("/", 1)[1]


def _ares(name: str, architecture: str, file: str, clean: float, robust: float) -> Entry:
    return Entry(
        name=f"ares_{name}",
        architecture=architecture,
        url=f"https://ml.cs.tsinghua.edu.cn/~xiaoyang/aresbench/ckpt-imagenet/ARES_{file}_AT.pth",
        trained_for="linf 4/255",
        clean=clean,
        robust=robust,
        source="ARES 2.0, robust_training/README.md (arXiv:2302.14301): clean and AutoAttack "
        "accuracy on 1,000 ImageNet validation images",
    )


def _microsoft(name: str, size: str, clean: float) -> Entry:
    architecture = f"swin_{size}_patch4_window7_224"
    releases = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0"
    return Entry(
        name=f"microsoft_swin_{name}",
        architecture=architecture,
        url=f"{releases}/{architecture}.pth",
        clean=clean,
        source="microsoft/Swin-Transformer, README.md: ImageNet-1K at 224x224",
    )


_SWIN, _VIT = "swin_{}_patch4_window7_224", "vit_{}_patch16_224"

_ENTRIES = (
    _ares("swin_b", _SWIN.format("base"), "Swin_base_patch4_window7_224", 76.6, 57.3),
    _ares("swin_s", _SWIN.format("small"), "Swin_small_patch4_window7_224", 76.6, 55.6),
    _ares("swin_l", _SWIN.format("large"), "Swin_large_patch4_window7_224", 79.7, 62.3),
    _ares("vit_b", _VIT.format("base"), "ViT_base_patch16_224", 74.7, 49.7),
    _ares("vit_s", _VIT.format("small"), "ViT_small_patch16_224", 70.7, 43.7),
    _ares("convnext_s", "convnext_small", "ConvNext_Small", 77.3, 54.3),
    _ares("convnext_b", "convnext_base", "ConvNext_Base", 77.2, 56.8),
    _ares("convnext_l", "convnext_large", "ConvNext_Large", 78.8, 60.1),
    _ares("resnet50", "resnet50", "ResNet50", 67.0, 34.1),
    _microsoft("t", "tiny", 81.2),
    _microsoft("s", "small", 83.2),
    _microsoft("b", "base", 83.5),
    Entry(
        name="torchvision_vit_b_16",
        architecture="vit_base_patch16_224",
        url="https://download.pytorch.org/models/vit_b_16-c867db91.pth",
        sha256="c867db91",  # torch.hub's convention: the name ends in the first digits
        clean=81.072,
        source="torchvision, ViT_B_16_Weights.IMAGENET1K_V1: ImageNet-1K at 224x224",
    ),
)

ZOO: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}
"""Name -> entry, robust ones first."""


def folder() -> Path:
    """The cache's folder of weights; it need not exist.

    $ROLI_FAST_HOME/weights where that variable is set, else roli_fast/weights in the user's cache
    folder ($XDG_CACHE_HOME or ~/.cache).
    """
    own, cache = os.environ.get("ROLI_FAST_HOME"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own).expanduser() / "weights"
    return (Path(cache) if cache else Path.home() / ".cache") / "roli_fast" / "weights"


def find(name: str) -> Entry:
    """The entry called `name`.

    Raises:
        ArgumentError: there is none; similar names are listed.
    """
    if name in ZOO:
        return ZOO[name]
    near = difflib.get_close_matches(name, ZOO, n=3, cutoff=0.4)
    fix = f"Similar: {', '.join(near)}." if near else "See `python -m roli_fast.zoo list`."
    raise ArgumentError(describe("name", f"one of: {', '.join(ZOO)}", repr(name), fix))


def named(weights: str) -> Entry | None:
    """The entry that `zoo:NAME`, or a file of a published name, stands for; None for others.

    Raises:
        ArgumentError: an unknown name after `zoo:`.
    """
    if weights.startswith(PREFIX):
        return find(weights.removeprefix(PREFIX))
    file = Path(weights).name
    return next((entry for entry in ZOO.values() if entry.file == file), None)


def local_file(weights: str) -> Path:
    """The path of `weights`: a `zoo:NAME` in the cache, anything else as it is.

    Raises:
        ArgumentError: an unknown name after `zoo:`.
        CheckpointError: a published file that is not on disk, with its address and the command
            that fetches it.
    """
    entry = named(weights)
    by_name = weights.startswith(PREFIX)
    path = folder() / entry.file if entry and by_name else Path(weights)
    if entry and not path.is_file():
        fix = f"Fetch it from {entry.url} once with `python -m roli_fast.zoo get {entry.name}`"
        fix += "." if by_name else f", and write weights: {PREFIX}{entry.name}."
        raise CheckpointError(
            describe("weights", f"the published {entry.file}", f"no file '{path}'", fix)
        )
    return path

"""What is published where: one row a file.

No row was downloaded when this table was written: addresses, architectures and accuracies are
their publishers' statements, named in `source`. Where a publisher gives no sha256, there is none.
"""

from dataclasses import dataclass

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_ARES = "https://ml.cs.tsinghua.edu.cn/~xiaoyang/aresbench/ckpt-imagenet/"
_MICROSOFT = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
_TORCHVISION = "https://download.pytorch.org/models/"

_ARES_SOURCE = (
    "ARES 2.0, robust_training/README.md (arXiv:2302.14301): clean and AutoAttack accuracy on "
    "1,000 ImageNet validation images"
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One published weight file.

    Args:
        name: what `get` and `zoo:NAME` call it.
        architecture: the timm architecture that it fits.
        url: where its publisher offers it.
        sha256: of the file, in hex; fewer than 64 digits where the publisher tells only the
            first ones; None where it tells none.
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
    sha256: str | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    trained_for: str
    clean: float
    robust: float | None = None
    source: str

    @property
    def file(self) -> str:
        """The file's own name."""
        return self.url.rsplit("/", 1)[1]


def _ares(name: str, architecture: str, file: str, clean: float, robust: float) -> Entry:
    return Entry(
        name=name,
        architecture=architecture,
        url=_ARES + file,
        trained_for="linf 4/255",
        clean=clean,
        robust=robust,
        source=_ARES_SOURCE,
    )


def _microsoft(name: str, architecture: str, clean: float) -> Entry:
    return Entry(
        name=name,
        architecture=architecture,
        url=f"{_MICROSOFT}{architecture}.pth",
        trained_for="clean",
        clean=clean,
        source="microsoft/Swin-Transformer, README.md: ImageNet-1K at 224x224",
    )


_ENTRIES = (
    _ares(
        "ares_swin_b",
        "swin_base_patch4_window7_224",
        "ARES_Swin_base_patch4_window7_224_AT.pth",
        76.6,
        57.3,
    ),
    _ares(
        "ares_swin_s",
        "swin_small_patch4_window7_224",
        "ARES_Swin_small_patch4_window7_224_AT.pth",
        76.6,
        55.6,
    ),
    _ares(
        "ares_swin_l",
        "swin_large_patch4_window7_224",
        "ARES_Swin_large_patch4_window7_224_AT.pth",
        79.7,
        62.3,
    ),
    _ares("ares_vit_b", "vit_base_patch16_224", "ARES_ViT_base_patch16_224_AT.pth", 74.7, 49.7),
    _ares("ares_vit_s", "vit_small_patch16_224", "ARES_ViT_small_patch16_224_AT.pth", 70.7, 43.7),
    _ares("ares_convnext_s", "convnext_small", "ARES_ConvNext_Small_AT.pth", 77.3, 54.3),
    _ares("ares_convnext_b", "convnext_base", "ARES_ConvNext_Base_AT.pth", 77.2, 56.8),
    _ares("ares_convnext_l", "convnext_large", "ARES_ConvNext_Large_AT.pth", 78.8, 60.1),
    _ares("ares_resnet50", "resnet50", "ARES_ResNet50_AT.pth", 67.0, 34.1),
    _microsoft("microsoft_swin_t", "swin_tiny_patch4_window7_224", 81.2),
    _microsoft("microsoft_swin_s", "swin_small_patch4_window7_224", 83.2),
    _microsoft("microsoft_swin_b", "swin_base_patch4_window7_224", 83.5),
    Entry(
        name="torchvision_vit_b_16",
        architecture="vit_base_patch16_224",
        url=_TORCHVISION + "vit_b_16-c867db91.pth",
        sha256="c867db91",  # torch.hub's convention: the name ends in the first digits
        trained_for="clean",
        clean=81.072,
        source="torchvision, ViT_B_16_Weights.IMAGENET1K_V1: ImageNet-1K at 224x224",
    ),
)

ZOO: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}
"""Name -> entry, robust ones first."""

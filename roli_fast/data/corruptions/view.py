"""A split seen through a corruption."""

from dataclasses import dataclass, field, replace

from torch import Generator, Tensor

from roli_fast.data.corruptions.base import CORRUPTIONS, Corruption, check_severity
from roli_fast.data.draws import Draws
from roli_fast.data.pixels import Pixels
from roli_fast.data.splits import ImageDataset
from roli_fast.data.transforms import Transform, transformed
from roli_fast.seeds import derive_seed


@dataclass(frozen=True, eq=False)
class _CorruptedPixels:
    """`pixels` after `prepare` and then the corruption, on every read."""

    pixels: Pixels = field(repr=False)
    prepare: Transform | None
    kind: Corruption
    severity: int
    seed: int

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, row: int) -> Tensor:
        generator = Generator()
        image = self.pixels.read(row)
        if self.prepare is not None:
            image = transformed(self.prepare, image[None], Draws.none(1))[0]
        generator.manual_seed(
            derive_seed("corruption", self.seed, self.kind.name, self.severity, row)
        )
        return self.kind(image, self.severity, generator)

    def name(self, row: int) -> str:
        return self.pixels.name(row)


def corrupted(dataset: ImageDataset, kind: str, severity: int, *, seed: int = 0) -> ImageDataset:
    """The same samples without augmentation, brought to their size and then corrupted.

    It is read as any split is: by `batches`, with workers, through `subset`. The draws depend on
    (seed, sample id, kind, severity) alone.

    Args:
        dataset: a split, `splits.test` say; its labels and ids stay.
        kind: a name in `CORRUPTIONS`, "fog".
        severity: 1 to 5.
        seed: another seed, other noise.

    Raises:
        ArgumentError: an unknown kind or severity.
    """
    check_severity(severity)
    pixels = _CorruptedPixels(dataset.pixels, dataset.prepare, CORRUPTIONS[kind], severity, seed)
    return replace(dataset, pixels=pixels, prepare=None, augment=None)

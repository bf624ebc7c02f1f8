"""The 15 common corruptions at 5 severities (Hendrycks & Dietterich, "Benchmarking neural network
robustness to common corruptions and perturbations", ICLR 2019, arXiv:1903.12261).

`corrupted(splits.test, "fog", 3)` is the test split with fog over it; `CORRUPTIONS["fog"]` corrupts
one image. A new kind is one function under `@corruption(...)` in a file of this folder.

What holds for every kind, and what differs from the images of ImageNet-C and CIFAR-10-C:

- The published severities are those for images of 224 pixels and those for 32 pixels; the latter
  are taken up to a short side of 64. Lengths in pixels are not scaled to other sizes, except where
  a docstring says so.
- The draws are this package's: the same law, other numbers. The published sets are one draw.
- Results are rounded. The published code cuts off, which is half a grey level darker on average.
- ImageNet-C was stored as JPEG of quality 85; nothing is compressed here but by `jpeg_compression`.
- `frost` is not comparable with published numbers: see there.
"""

from roli_fast.data.corruptions.base import CORRUPTIONS as CORRUPTIONS
from roli_fast.data.corruptions.base import SEVERITIES as SEVERITIES
from roli_fast.data.corruptions.base import Corruption as Corruption
from roli_fast.data.corruptions.base import corrupted as corrupted
from roli_fast.registry import load_components

load_components(__name__, list(__path__))

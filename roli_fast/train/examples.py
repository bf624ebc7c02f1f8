"""A few images beside their attacked versions, for the report: examples.npz."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from roli_fast.analysis import Gathered
from roli_fast.files import write_bytes
from roli_fast.threat import as_pixels


def write_examples(path: Path, clean: Gathered, attacked: Gathered, rounded: Gathered) -> None:
    """Write n images and what one model makes of them.

    Arrays: "clean" and "adversarial", uint8 (n, H, W, 3); "delta", their difference before rounding
    to pixels, float16 (n, H, W, 3); "label", "clean_prediction", "adversarial_prediction", int64
    (n,); "clean_confidence", "adversarial_confidence", float32 (n,): of the images as they are in
    the file; "unrounded_prediction", int64 (n,), of the attacked images before rounding.

    Args:
        path: the file, replaced whole.
        clean: with the images kept, (n, 3, H, W) in [0, 1].
        attacked: the same images under attack, kept too.
        rounded: those by `as_pixels`, kept too.
    """
    assert clean.x is not None and attacked.x is not None, "images are kept"
    assert rounded.x is not None, "images are kept"
    arrays: dict[str, Any] = {
        "clean": _last(as_pixels(clean.x, clean.x)),
        "adversarial": _last(as_pixels(rounded.x, clean.x)),
        "delta": _last(attacked.x - clean.x).astype(np.float16),
        "label": clean.y.numpy(),
        "unrounded_prediction": attacked.logits.argmax(1).numpy(),
    }
    for name, found in (("clean", clean), ("adversarial", rounded)):
        confidence, prediction = found.logits.softmax(1).max(1)
        arrays[f"{name}_prediction"] = prediction.numpy()
        arrays[f"{name}_confidence"] = confidence.numpy().astype(np.float32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def _last(x: Tensor) -> np.ndarray:
    """(n, 3, H, W) as (n, H, W, 3)."""
    return x.permute(0, 2, 3, 1).numpy()

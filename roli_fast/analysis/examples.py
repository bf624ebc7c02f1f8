"""A few images beside their attacked versions, and what one model makes of them: examples.npz."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from roli_fast.analysis.light import Look
from roli_fast.analysis.view import gather
from roli_fast.data import Batch
from roli_fast.files import write_bytes
from roli_fast.threat import as_pixels

SHOWN = 8
"""Images in examples.npz."""


def worth_showing(looked: Look) -> list[int]:
    """Places of a few images: those that the attack fools, and two that withstand it; what is wrong
    before the attack comes where these are too few."""
    clean, attacked = looked.clean, looked.adversarial or looked.clean
    right = clean.logits.argmax(1) == clean.y
    stays = attacked.logits.argmax(1) == attacked.y
    fooled, withstood, wrong = (
        flags.nonzero()[:, 0].tolist() for flags in (right & ~stays, right & stays, ~right)
    )
    first = fooled[: SHOWN - min(2, len(withstood))]
    return [*first, *withstood, *fooled[len(first) :], *wrong][:SHOWN]


def write_examples(path: Path, names: Sequence[str], shown: Look, model: nn.Module) -> None:
    """Write n images and what a model makes of them.

    Arrays: "name", texts (n,); "clean" and "adversarial", uint8 (n, H, W, 3); "delta", their
    difference before rounding to pixels, float16 (n, H, W, 3); "label", "clean_prediction",
    "adversarial_prediction", int64 (n,); "clean_confidence", "adversarial_confidence", float32
    (n,): of the images as they are in the file; "unrounded_prediction", int64 (n,), of the attacked
    images before rounding.

    Args:
        path: the file, replaced whole.
        names: of the images.
        shown: the images, clean and attacked, with `x` (n, 3, H, W) in [0, 1] kept.
        model: that was attacked.
    """
    clean, attacked = shown.clean, shown.adversarial
    assert attacked is not None and clean.x is not None and attacked.x is not None
    pixels, device = as_pixels(attacked.x, clean.x), next(model.parameters()).device
    x = (pixels.to(clean.x.dtype) / 255).to(device)
    rounded = gather(model, [Batch(x, clean.y.to(device), clean.ids)])
    arrays: dict[str, Any] = {
        "name": np.array([name.encode(errors="replace").decode() for name in names]),
        "clean": _channels_last(as_pixels(clean.x, clean.x)),
        "adversarial": _channels_last(pixels),
        "delta": _channels_last(attacked.x - clean.x).astype(np.float16),
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


def _channels_last(x: Tensor) -> "np.ndarray[Any, Any]":
    """(n, 3, H, W) as (n, H, W, 3)."""
    return x.permute(0, 2, 3, 1).numpy()

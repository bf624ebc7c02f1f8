"""A few images, what the attack made of them, and the difference, magnified."""

import base64
import io
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from roli_fast.files import told
from roli_fast.report.blocks import Block, Example, Fold, Gallery, Missing, Picture, Section
from roli_fast.report.read import Method, Seed, Tree
from roli_fast.report.subjects import Page, Subject
from roli_fast.report.text import number, percent, radius

FIELDS = (
    "clean",
    "adversarial",
    "delta",
    "label",
    "clean_prediction",
    "adversarial_prediction",
    "clean_confidence",
    "adversarial_confidence",
)
"""Of examples.npz."""
UNROUNDED = "unrounded_prediction"


def examples(page: Page) -> Section:
    """The examples of RoLI, else of the first method; those of the others folded."""
    subjects = sorted(page.subjects, key=lambda s: s.method.name != "roli")
    found = [(s, gallery) for s in subjects for gallery in _galleries(page, s)]
    blocks: list[Block] = []
    for place, (subject, gallery) in enumerate(found):
        if isinstance(gallery, Missing) or place == 0:
            blocks.append(gallery)
            continue
        blocks.append(Fold(f"{subject.label}: {_told(gallery)}", [gallery]))
    if not found:
        what = "No example images: there is no examples.npz."
        blocks.append(Missing(what, f"python -m roli_fast.analyze {page.folders}"))
    return Section("examples", "Images before and after the attack", blocks, "Images")


def example_files(method: Method) -> list[tuple[Seed, Path]]:
    """examples.npz of the first seed that has one."""
    for seed in method.seeds:
        file = method.folder / f"seed-{seed.number}" / method.name / "examples.npz"
        if file.is_file():
            return [(seed, file)]
    return []


def _galleries(page: Page, subject: Subject) -> Iterator[Gallery | Missing]:
    for seed, file in example_files(subject.method):
        source = page.source(subject.run, file.relative_to(subject.run.folder))
        try:
            arrays = load(file)
            attack = (seed.analysis or {}).get("attack") or {}
            classes = (subject.run.summary or {}).get("classes") or ()
            shown = [_example(arrays, i, classes, attack) for i in range(len(arrays["label"]))]
        except Exception as error:  # whatever a damaged archive makes of it
            again = f"python -m roli_fast.analyze {shlex.quote(str(subject.run.folder))} --again"
            yield Missing(f"{source.text} cannot be read ({told(error)}).", again)
            return
        title = f"{subject.label}, seed {seed.number}"
        yield Gallery(title, shown, _caption(attack), [source])


def _told(gallery: Gallery) -> str:
    """ "3 of 8 wrong before the attack, 2 fooled"."""
    fooled = [example.fooled for example in gallery.examples]
    wrong, by_attack = fooled.count(None), fooled.count(True)
    return f"{wrong} of {len(fooled)} wrong before the attack, {by_attack} fooled"


def load(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of examples.npz, each with one entry an image.

    Raises:
        ValueError: their shapes do not fit together.
        KeyError: one is missing.
    """
    # opened here: numpy leaves a damaged one open
    with open(file, "rb") as raw, np.load(raw, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in FIELDS}
        before = archive.get(UNROUNDED, archive["adversarial_prediction"])  # of older runs: itself
        arrays[UNROUNDED] = before
    lengths = {len(array) for array in arrays.values()}
    images = {arrays[name].shape for name in ("clean", "adversarial", "delta")}
    if len(lengths) != 1 or len(images) != 1 or arrays["clean"].ndim != 4:
        raise ValueError("arrays of different shapes")
    return arrays


def _caption(attack: Tree) -> str:
    if attack.get("norm") == "linf":
        scale = "grey is no change, and black and white are a whole radius"
    else:
        scale = "grey is no change, and the largest change of each image is black or white"
    label = f"{attack.get('label')}, {radius(attack.get('norm'), attack.get('eps'))}"
    return (
        f"Test images, attacked by {label}. The difference is magnified as its caption says: "
        f"{scale}. Attacked pixels are rounded towards the clean ones, and the model speaks of "
        "these. Percentages are the model's confidence, before any temperature. So few images "
        "are no sample to judge a model by."
    )


def _example(
    arrays: dict[str, np.ndarray[Any, Any]], i: int, classes: Sequence[str], attack: Tree
) -> Example:
    names = ("label", "clean_prediction", "adversarial_prediction", UNROUNDED)
    label, clean, attacked, unrounded = (int(arrays[name][i]) for name in names)
    true, before, after = (_class(classes, k) for k in (label, clean, attacked))
    sure = {w: percent(float(arrays[f"{w}_confidence"][i]), 0) for w in ("clean", "adversarial")}
    delta = arrays["delta"][i].astype(np.float32)
    largest = float(np.abs(delta).max())
    whole = attack.get("eps") if attack.get("norm") == "linf" else largest
    factor = 0.5 / whole if whole else 1.0
    seen = np.clip(0.5 + factor * delta, 0, 1)
    times = number(factor)
    if clean != label:
        text, fooled = f"{true}: wrong before the attack", None
    elif attacked != label:
        text, fooled = f"{true}: fooled", True
    elif unrounded != label:
        text, fooled = f"{true}: fooled, but not by these rounded pixels", True
    else:
        text, fooled = f"{true}: withstands the attack", False
    pictures = (
        Picture(
            png(arrays["clean"][i]),
            f"Test image of {true}; the model says {before}, {sure['clean']}",
            "clean",
            f"{before}, {sure['clean']}",
        ),
        Picture(
            png(arrays["adversarial"][i]),
            f"The same image attacked; the model says {after}, {sure['adversarial']}",
            "attacked",
            f"{after}, {sure['adversarial']}",
        ),
        Picture(
            png(np.rint(255 * seen).astype(np.uint8)),
            f"What the attack changed, magnified {times} times; grey is no change",
            "difference",
            f"× {times}",
        ),
    )
    return Example(pictures, text, fooled)


def _class(classes: Sequence[str], number: int) -> str:
    return f"“{classes[number]}”" if 0 <= number < len(classes) else f"class {number}"


def png(pixels: np.ndarray[Any, Any]) -> str:
    """uint8 (H, W, 1 or 3) as a data URI."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    out = io.BytesIO()
    image.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()

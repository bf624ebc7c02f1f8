"""A few images, what the attack made of them, and the difference, magnified."""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from roli_fast.report.read import CONDITIONS, UNROUNDED, Arrays, Seed, Tree
from roli_fast.report.subjects import Page, Subject
from roli_fast.report.text import number, percent, radius


class Picture(NamedTuple):
    """One image as a data URI: what it is, what the model says of it, and what one does not see."""

    uri: str
    what: str
    said: str
    alt: str


class Example(NamedTuple):
    """An image, what the attack made of it, and their difference; `fooled` is None where the model
    was wrong before."""

    text: str
    fooled: bool | None
    pictures: Sequence[Picture]


class Gallery(NamedTuple):
    """Examples of one model under an attack."""

    label: str
    told: str
    examples: Sequence[Example]
    attack: str
    linf: bool


def galleries(page: Page) -> list[Gallery]:
    """Of every method the first seed that has examples, those of RoLI first."""
    subjects = sorted(page.subjects, key=lambda s: s.method.name != "roli")
    seeds = [(s, next((seed for seed in s.method.seeds if seed.examples), None)) for s in subjects]
    return [_gallery(subject, seed) for subject, seed in seeds if seed]


def _gallery(subject: Subject, seed: Seed) -> Gallery:
    attack = (seed.analysis or {}).get("attack") or {}
    arrays, classes = seed.examples or {}, subject.run.summary.get("classes") or ()
    found = [_example(arrays, i, classes, attack) for i in range(len(arrays["label"]))]
    fooled = [example.fooled for example in found]
    wrong, by_attack = fooled.count(None), fooled.count(True)
    told = f"{wrong} of {len(fooled)} wrong before the attack, {by_attack} fooled"
    by = f"{attack.get('label')}, {radius(attack.get('norm'), attack.get('eps'))}"
    label = f"{subject.label}, seed {seed.number}"
    return Gallery(label, told, found, by, attack.get("norm") == "linf")


def _example(arrays: Arrays, i: int, classes: Sequence[str], attack: Tree) -> Example:
    predicted = [int(arrays[f"{condition}_prediction"][i]) for condition in CONDITIONS]
    sure = [percent(float(arrays[f"{condition}_confidence"][i]), 0) for condition in CONDITIONS]
    label, unrounded = int(arrays["label"][i]), int(arrays[UNROUNDED][i])
    says = [f"{_class(classes, k)}, {p}" for k, p in zip(predicted, sure, strict=True)]
    true, (clean, attacked) = _class(classes, label), predicted
    if clean != label:
        text, fooled = "wrong before the attack", None
    elif attacked != label:
        text, fooled = "fooled", True
    elif unrounded != label:
        text, fooled = "fooled, but not by these rounded pixels", True
    else:
        text, fooled = "withstands the attack", False
    delta = arrays["delta"][i].astype(np.float32)
    whole = attack.get("eps") if attack.get("norm") == "linf" else float(np.abs(delta).max())
    factor = 0.5 / whole if whole else 1.0
    seen = np.rint(255 * np.clip(0.5 + factor * delta, 0, 1)).astype(np.uint8)
    times = number(factor)
    before = f"Test image of {true}; the model says {says[0]}"
    after = f"The same image attacked; the model says {says[1]}"
    change = f"What the attack changed, magnified {times} times; grey is no change"
    pictures = (
        Picture(_png(arrays["clean"][i]), "clean", says[0], before),
        Picture(_png(arrays["adversarial"][i]), "attacked", says[1], after),
        Picture(_png(seen), "difference", f"× {times}", change),
    )
    return Example(f"{true}: {text}", fooled, pictures)


def _class(classes: Sequence[str], number: int) -> str:
    return f"“{classes[number]}”" if 0 <= number < len(classes) else f"class {number}"


def _png(pixels: np.ndarray) -> str:
    """uint8 (H, W, 1 or 3) as a data URI."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    out = io.BytesIO()
    image.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()

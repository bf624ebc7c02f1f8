"""A few images, what the attack made of them, and the difference, magnified."""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from roli_fast.evaluate.report import picture_name
from roli_fast.report.read import Arrays, Run, Seed, Tree
from roli_fast.report.read import fooled as fooled_images
from roli_fast.report.subjects import Page, Subject
from roli_fast.report.tables import named
from roli_fast.report.text import number, percent, radius


class Picture(NamedTuple):
    """One image as a data URI: what it is, what the model says of it, and what one does not see."""

    uri: str
    what: str
    said: str
    alt: str


class Example(NamedTuple):
    """An image, what the attack made of it, and their difference."""

    text: str
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
    right = arrays["clean_prediction"] == arrays["label"]
    attacked = arrays["adversarial_prediction"], arrays["unrounded_prediction"]
    fooled = right & np.logical_or(*(predicted != arrays["label"] for predicted in attacked))
    told = f"{(~right).sum()} of {len(found)} wrong before the attack, {fooled.sum()} fooled"
    by = f"{attack.get('label')}, {radius(attack.get('norm'), attack.get('eps'))}"
    label = f"{subject.label}, seed {seed.number}"
    return Gallery(label, told, found, by, attack.get("norm") == "linf")


def _example(arrays: Arrays, i: int, classes: Sequence[str], attack: Tree) -> Example:
    here = {name: values[i] for name, values in arrays.items()}
    label = here["label"]
    if here["clean_prediction"] != label:
        verdict = "wrong before the attack"
    elif here["adversarial_prediction"] != label:
        verdict = "fooled"
    elif here["unrounded_prediction"] != label:
        verdict = "fooled, but not by these rounded pixels"
    else:
        verdict = "withstands the attack"
    delta = here["delta"].astype(np.float32)
    largest = attack.get("eps") if attack.get("norm") == "linf" else float(np.abs(delta).max())
    factor = 0.5 / largest if largest else 1.0
    seen = np.rint(255 * np.clip(0.5 + factor * delta, 0, 1)).astype(np.uint8)
    true, times = _class(classes, label), number(factor)
    clean, attacked = _said(here, "clean", classes), _said(here, "adversarial", classes)
    before = f"Test image of {true}; the model says {clean}"
    after = f"The same image attacked; the model says {attacked}"
    change = f"What the attack changed, magnified {times} times; grey is no change"
    pictures = (
        Picture(_png(here["clean"]), "clean", clean, before),
        Picture(_png(here["adversarial"]), "attacked", attacked, after),
        Picture(_png(seen), "difference", f"× {times}", change),
    )
    name = f"{here['name']}, " if "name" in here else ""
    return Example(f"{name}{true}: {verdict}", pictures)


def fooled(run: Run, folder: str) -> list[Example]:
    """Images of an evaluation that its attacks fooled, where they were saved: before and after."""
    tree, pictures = run.evaluations[folder], run.pictures[folder]
    classes, found = named(tree), list[Example]()
    for name, label, answer, norm in fooled_images(tree):
        clean, attacked = (pictures.get(f"{k}/{picture_name(name)}") for k in ("clean", norm))
        if clean and attacked:
            true, other = f"“{classes(label)}”", f"“{classes(answer)}”"
            before = Picture(_uri(clean), "clean", true, f"Test image {name} of {true}")
            after = f"The same image attacked in {norm}; the model says {other}"
            pair = (before, Picture(_uri(attacked), f"attacked, {norm}", other, after))
            found.append(Example(name, pair))
    return found


def _said(here: Arrays, condition: str, classes: Sequence[str]) -> str:
    """ "“cat”, 90 %"."""
    sure = percent(float(here[f"{condition}_confidence"]), 0)
    return f"{_class(classes, here[f'{condition}_prediction'])}, {sure}"


def _class(classes: Sequence[str], label: np.ndarray) -> str:
    number = int(label)
    return f"“{classes[number]}”" if 0 <= number < len(classes) else f"class {number}"


def _png(pixels: np.ndarray) -> str:
    """uint8 (H, W, 1 or 3) as a data URI."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    out = io.BytesIO()
    image.save(out, "PNG")
    return _uri(out.getvalue())


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()

"""`zoo check`: accuracies of a network with its own head, against what it came with.

The images are noise that lies in the folder of the class that the network itself answers under the
normalisation it is meant for: there it is right about all of them, by construction.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import SMALL

from roli_fast.models import Model, create, imagenet_names
from roli_fast.zoo import NORMALIZATIONS, ZOO, Entry
from roli_fast.zoo.__main__ import main

NAME = "vit_tiny_patch16_224"
HALF = NORMALIZATIONS["half"]
IMAGENET = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]

Text = pytest.CaptureFixture[str]


def entry(**changes: Any) -> Entry:
    where = {"url": "https://nowhere.org/w/own.pth", "file": "own.pth", "source": "this test"}
    made: dict[str, Any] = {"name": "own", "architecture": NAME, "options": SMALL[NAME], **where}
    made |= {"mean": HALF[0], "std": HALF[1], "image_size": 8}
    made |= {"trained_for": "linf 16/255", "clean": 100.0, "robust": 0.0}
    return Entry(**{**made, **changes})


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of images; the network is in the zoo as `own`."""
    monkeypatch.setenv("ROLI_FAST_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(ZOO, "own", entry())
    model = create(Model(NAME, options=SMALL[NAME]), num_classes=1000, seed=3).eval()
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(0))
        model.head.bias.zero_()
    weights = tmp_path / "home" / "weights" / "own.pth"
    weights.parent.mkdir(parents=True)
    torch.save(model.backbone.state_dict(), weights)
    draws = np.random.default_rng(0)
    colours, noise = draws.uniform(0, 255, (200, 1, 1, 3)), draws.normal(0, 40, (200, 8, 8, 3))
    pixels = (colours + noise).clip(0, 255).astype(np.uint8)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        answers = model(x).argmax(1).tolist()
    counts, names = Counter(answers), imagenet_names()
    assert sum(counts[answer] >= 3 for answer in counts) > 3
    for number, (image, answer) in enumerate(zip(pixels, answers, strict=True)):
        if counts[answer] >= 3:
            folder = tmp_path / "images" / "val" / names[answer][0]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number}.png")
    return tmp_path / "images"


def check(data: Path, *more: str, images: int = 10_000) -> int:
    return main(["check", "own", "--data", str(data), "--images", str(images), *more])


def test_the_right_normalisation_and_a_wrong_one(data: Path, capsys: Text) -> None:
    assert check(data) == 0
    text = capsys.readouterr().out
    assert "images of" in text and "answered among these alone of its 1000 outputs" in text
    assert "clean                 100.0% +- 0.0%" in text and "PGD-10 linf 16/255" in text
    assert "100.0 % clean, 0.0 % under linf 16/255 (AutoAttack), on ImageNet's" in text
    assert text.splitlines()[-1] == "nothing suspicious" and "timm's for this" not in text
    assert check(data, *IMAGENET) == 1
    text = capsys.readouterr().out
    assert "(timm's for this architecture: mean 0.5, 0.5, 0.5" in text
    assert (
        "suspicious normalisation: with mean 0.5, 0.5, 0.5 and std 0.5, 0.5, 0.5 (timm's)" in text
    )
    assert "it has 100.0% instead of" in text and text.count("suspicious") == 1
    assert "in a run write --model.mean 0.5,0.5,0.5 --model.std 0.5,0.5,0.5\n" in text


def test_classes_by_their_words_and_an_accuracy_below_the_reported_one(
    data: Path, capsys: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few images of each class, in folders called golden_retriever and the like."""
    words = {own[0]: own[1].replace(" ", "_") for own in imagenet_names()}
    for folder in sorted((data / "val").iterdir()):
        folder.rename(folder.with_name(words[folder.name]))
    classes = len(list((data / "val").iterdir()))
    assert check(data, images=classes) == 0
    assert f"own: {classes} images of {classes} classes" in capsys.readouterr().out
    monkeypatch.setitem(ZOO, "own", entry(robust=99.0, trained_for="linf 255/255"))
    assert check(data) == 1
    assert "robust accuracy is below the 99.0 % that it came with" in capsys.readouterr().out


def test_what_cannot_be_checked(data: Path, capsys: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    next((data / "val").iterdir()).rename(data / "val" / "a_thing_of_mine")
    assert check(data) == 2
    assert "nothing that tells the output of 'a_thing_of_mine'" in capsys.readouterr().err
    assert main(["check", "fare_vit_b_16_eps4", "--data", str(data)]) == 2
    error = capsys.readouterr().err
    assert "a network with a head for classes" in error and "B/16 56.6 / 23.5" in error
    assert main(["check", "ares_swin_b", "--data", str(data)]) == 2
    assert "zoo get ares_swin_b" in capsys.readouterr().err

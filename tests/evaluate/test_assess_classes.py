"""A model meets a data set of some of its classes, or of the same ones in another order."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from evaluated_models import SIZE, Nearest
from timm.data import ImageNetInfo
from torch import Tensor, nn

from roli_fast.errors import ConfigError
from roli_fast.evaluate.__main__ import parse
from roli_fast.evaluate.config import ModelSource
from roli_fast.evaluate.prepare import OpenedModel, match_classes, open_model, prepare
from roli_fast.evaluate.run import run
from roli_fast.running.ranks import Ranks

OUTPUTS = tuple(str(digit) for digit in range(10))
TWO = ["--data=digits", "--data.classes=7,3", f"--data.image_size={SIZE}", "--attacks=pgd-1"]
TWO += ["--model=evaluated_models:nearest", "--eps=1e-4", "--images=30", "--threads=1"]


def test_two_of_a_runs_classes_are_scored_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The digits' model, as opened from a file that names its ten outputs."""
    opened = OpenedModel(Nearest().eval(), {"sha256": "0"}, OUTPUTS)
    monkeypatch.setattr("roli_fast.evaluate.prepare.open_model", lambda *_, **__: opened)
    flags = [*TWO, "--ood=digits", "--ood.classes=1,0", f"--ood.image_size={SIZE}"]
    flags += ["--corruptions=contrast", "--curve=1e-4"]
    report = run(parse(flags).config, tmp_path / "out", quiet=True)
    assert report is not None
    assert report["clean"]["accuracy"] > 0.9 and report["union"]["accuracy"] > 0.9
    assert report["shifts"]["ood"]["accuracy"] > 0.8
    assert report["shifts"]["corruptions"]["contrast"]["1"]["accuracy"] > 0.9
    assert set(report["labels"]) == {7, 3} and report["data"]["outputs"] == [7, 3]
    assert any("the outputs 7, 3 of 10" in note for note in report["notes"])


def test_without_names_a_part_of_the_outputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`classes`.*2 classes in data and 10 outputs.*'7', '3'"):
        prepare(parse(TWO).config, Ranks.from_environment())
    whole = ["--data.classes=0,1,2,3,4,5,6,7,8,9", "--ood=digits", "--ood.classes=1,0"]
    with pytest.raises(ConfigError, match="2 classes in ood and 10 outputs"):
        flags = [*TWO, *whole, f"--ood.image_size={SIZE}"]
        prepare(parse(flags).config, Ranks.from_environment())


@pytest.mark.parametrize("form", ["list", "pairs", "file"])
def test_the_user_names_the_outputs(form: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(OUTPUTS))
    text = {"list": ",".join(OUTPUTS), "pairs": "3=3,7=7", "file": str(tmp_path / "names.txt")}
    flags = [*TWO, f"--classes={text[form]}"]
    ready = prepare(parse(flags).config, Ranks.from_environment())
    digit = {0: 7, 1: 3}
    own, found = parse(TWO).config.data.load().test, ready.datasets["data"]
    names = {int(i): digit[int(label)] for i, label in zip(own.ids, own.labels, strict=True)}
    assert [names[int(i)] for i in found.ids] == found.labels.tolist()


SYNSETS = tuple(ImageNetInfo().label_names())


@pytest.mark.parametrize(
    ("classes", "known", "outputs", "given", "right"),
    [
        (("b", "d"), ("a", "b", "c", "d"), 4, (), (1, 3)),
        (("a", "b"), ("b", "a"), 2, (), (1, 0)),  # the same classes in another order
        (("x", "y"), ("b", "a"), 2, (), (0, 1)),  # other names, as many: a note
        (("a", "b"), (), 2, (), (0, 1)),
        (("x", "y"), ("a", "b", "c"), 3, ("y", "z", "x"), (2, 0)),
        (("x", "y"), (), 5, ("x=4", "y=1"), (4, 1)),
        ((SYNSETS[217], SYNSETS[0]), (), 1000, (), (217, 0)),
    ],
)
def test_the_output_of_each_class(
    classes: tuple[str, ...], known: Any, outputs: int, given: Any, right: tuple[int, ...]
) -> None:
    found, notes = match_classes(classes, known, outputs, given)
    assert found == right
    same = found == tuple(range(outputs))
    assert bool(notes) != (same and (known in ((), classes)))


@pytest.mark.parametrize(
    ("classes", "known", "outputs", "given", "words"),
    [
        (("a", "x"), ("a", "b", "c"), 3, (), "the output of 'x'"),
        (("a", "b"), (), 3, (), "2 classes in data and 3 outputs"),
        (("a", "b"), ("a", "a", "b"), 3, (), "the output of 'a'"),
        (("a", "b"), (), 3, ("a=3", "b=0"), "outputs 0 to 2, got 'a=3'"),
        (("a", "b"), (), 3, ("a", "b", "a"), "different names of outputs 0 to 2, got 'a'"),
    ],
)
def test_what_stays_open_is_refused(
    classes: Any, known: Any, outputs: int, given: Any, words: str
) -> None:
    with pytest.raises(ConfigError, match=rf"`classes`.*{re.escape(words)}.*--classes cat=281"):
        match_classes(classes, known, outputs, given)


def test_timms_own_weights_keep_their_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm gives a random head of ten outputs when it is asked for ten."""
    real = timm.create_model

    def offline(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
        assert pretrained
        return real(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    subject = ModelSource("test_vit", pretrained=True)
    opened = open_model(subject, num_classes=10, image_size=160)
    logits: Tensor = opened.model(torch.zeros(1, 3, 160, 160))
    assert logits.shape == (1, 1000)

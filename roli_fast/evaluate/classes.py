"""Which output of a model stands for which class of a data set."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from roli_fast.errors import ConfigError, describe
from roli_fast.models import imagenet_names

_FIX = (
    "Name the model's outputs in their order, --classes cat,dog,owl or a file with one name a line,"
    " or give the output of each class, --classes cat=281,dog=207."
)


def match_classes(
    classes: tuple[str, ...],
    known: tuple[str, ...],
    outputs: int,
    given: Sequence[str] = (),
    field: str = "data",
) -> tuple[tuple[int, ...], list[str]]:
    """The output that is right for each class of the data, and what the user should know.

    Args:
        classes: of the data, in the order of its labels.
        known: the names of the model's outputs, where its file tells them.
        outputs: how many the model has.
        given: the user's names, see `Assessment.classes`; they count before `known`.
        field: of the data set in the configuration.

    Raises:
        ConfigError: names that leave the output of a class open.
    """
    names = _given(given, outputs) if given else _once(known)
    if not names and outputs == 1000:
        names = _imagenet(classes)
    same = tuple(range(len(classes)))
    if known == classes and not given:
        return same, []
    if all(name in names for name in classes):
        found = tuple(names[name] for name in classes)
        if found == same and len(same) == outputs:
            return found, []
        shown = ", ".join(map(str, found[:10])) + (", ..." if len(found) > 10 else "")
        text = f"the data's {len(found)} classes are the outputs {shown} of {outputs} by their "
        return found, [f"{text}names; an image that is given another output is wrong"]
    elsewhere = any(names.get(name, place) != place for place, name in enumerate(classes))
    if given or elsewhere or len(classes) != outputs:
        unnamed = [name for name in classes if name not in names] if names else classes
        few = ", ".join(map(repr, unnamed[:3])) + (", ..." if len(unnamed) > 3 else "")
        got = f"{len(classes)} classes in {field} and {outputs} outputs, and nothing that tells "
        got += f"the output of {few}"
        raise ConfigError(describe("classes", "the model's output of every class", got, _FIX))
    different = [pair for pair in zip(known, classes, strict=False) if pair[0] != pair[1]]
    if not different:
        return same, []
    theirs, ours = different[0]
    text = f"{len(different)} classes are called otherwise in the data than in the model's file "
    text += f"('{ours}', '{theirs}'): if they are others, the accuracy says nothing"
    return same, [text]


def _given(entries: Sequence[str], outputs: int) -> dict[str, int]:
    """Name -> output of `name` (its place is the output), `name=output`, or a file with such."""
    if len(entries) == 1 and Path(entries[0]).is_file():
        try:
            lines = Path(entries[0]).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            got = f"{entries[0]}: {error}"
            raise ConfigError(describe("classes", "a text file", got)) from error
        entries = [line.strip() for line in lines if line.strip()]
    found: dict[str, int] = {}
    for place, entry in enumerate(entries):
        match = re.fullmatch(r"(.+)=(\d+)", entry)
        name, output = (match[1], int(match[2])) if match else (entry, place)
        if name in found or output >= outputs:
            expected = f"different names of outputs 0 to {outputs - 1}"
            raise ConfigError(describe("classes", expected, f"'{entry}'", _FIX))
        found[name] = output
    return found


def _imagenet(classes: tuple[str, ...]) -> Mapping[str, int]:
    """Folder -> output of those that are called as in ImageNet, "n01440764" or "golden_retriever";
    none of a thousand others."""
    called = [(output, word) for output, own in enumerate(imagenet_names()) for word in own]
    counts = Counter(word.lower() for _, word in called)
    known = {word.lower(): output for output, word in called if counts[word.lower()] == 1}
    found = {name: known.get(name.lower().replace("_", " ")) for name in classes}
    complete = all(output is not None for output in found.values())
    if len(classes) == len(imagenet_names()) and not complete:
        return {}
    return {name: output for name, output in found.items() if output is not None}


def _once(names: Sequence[str]) -> Mapping[str, int]:
    """Name -> output; a name that several outputs have tells nothing."""
    counts = Counter(names)
    return {name: place for place, name in enumerate(names) if counts[name] == 1}

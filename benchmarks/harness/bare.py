"""The packages of a bare GPU machine, and an interpreter that sees no others."""

import re
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

THERE = "torch torchvision timm numpy scipy safetensors PyYAML pytest pybind11 cmake ninja".split()
"""What is installed there, with what these need themselves: pillow, tqdm and jinja2 are."""

SITE = '''"""Hides packages; read by every interpreter that starts with this folder on its path."""
import sys
from importlib.machinery import PathFinder

HIDDEN = frozenset({hidden!r})


class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname.partition(".")[0] in HIDDEN:
            return None
        return PathFinder.find_spec(fullname, path, target)


sys.meta_path[:] = [Hiding if finder is PathFinder else finder for finder in sys.meta_path]
'''


def environment(folder: Path) -> dict[str, str]:
    """Variables under which Python sees the standard library, the folders on its path, and of what
    is installed `THERE` alone. `folder` must stay as long as they are used."""
    there = set(_with_needs(THERE))
    hidden = {
        top
        for top, owners in packages_distributions().items()
        if there.isdisjoint(map(_plain, owners)) and "roli-fast" not in map(_plain, owners)
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(SITE.format(hidden=sorted(hidden)))
    return {"PYTHONPATH": str(folder), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def _with_needs(names: Iterable[str]) -> Iterator[str]:
    """These distributions, and what they require without extras, by their plain names."""
    left, seen = list(names), set[str]()
    while left:
        name = _plain(left.pop())
        if name in seen:
            continue
        seen.add(name)
        yield name
        try:
            needs = requires(name) or []
        except PackageNotFoundError:  # for another system
            continue
        left += [re.split(r"[^\w.-]", need)[0] for need in needs if "extra ==" not in need]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

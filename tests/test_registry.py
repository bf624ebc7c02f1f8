"""Registries and error messages."""

import sys
from pathlib import Path

import pytest

from roli_fast.errors import ArgumentError, describe
from roli_fast.registry import Registry, load_components


def test_a_registry_names_and_finds_its_components() -> None:
    fruit: Registry[type] = Registry("fruit")
    fruit.register("pear")(int)
    fruit.register("apple")(str)
    assert fruit.names() == tuple(fruit) == ("apple", "pear")
    assert fruit["pear"] is int and "pear" in fruit and "plum" not in fruit
    assert fruit.name_of(str) == "apple"
    with pytest.raises(ArgumentError, match="`fruit`: expected one of: apple, pear, got 'plum'"):
        fruit["plum"]
    with pytest.raises(ArgumentError, match="new name for a fruit, got 'pear'"):
        fruit.register("pear")(float)
    assert fruit["pear"] is int and fruit.register("fig")(float) is float
    with pytest.raises(ArgumentError, match="`fruit`: expected a registered component"):
        fruit.name_of(complex)


def test_every_module_of_a_package_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "orchard"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "plum.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    load_components("orchard", [str(package)])
    assert "orchard.plum" in sys.modules


def test_the_sentence_of_a_bad_argument() -> None:
    assert describe("a", "b", "c", "Do d.") == "`a`: expected b, got c. Do d."

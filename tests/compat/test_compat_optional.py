"""No other library is imported before it is asked for."""

import ast
from pathlib import Path

import pytest

import roli_fast.compat
from roli_fast.compat.peers import library
from roli_fast.errors import MissingPackageError, RoliFastError

OTHERS = {"torchattacks", "foolbox", "eagerpy", "art", "autoattack", "robustbench", "peft"}


def test_none_is_imported_by_name() -> None:
    files = sorted(Path(roli_fast.compat.__file__).parent.rglob("*.py"))
    assert len(files) > 10
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            assert not OTHERS & {name.split(".")[0] for name in names}, file


def test_what_is_missing_is_an_import_error_with_the_command() -> None:
    with pytest.raises(MissingPackageError, match="pip install some-package$") as caught:
        library("no_such_module.part", "some-package")
    assert isinstance(caught.value, ImportError) and isinstance(caught.value, RoliFastError)
    assert caught.value.name == "no_such_module"

"""Configuration files: YAML with fractions."""

import re
from pathlib import Path
from typing import Any

import yaml

from roli_fast.errors import ConfigError, describe

RECIPES = Path(__file__).parent.parent / "recipes"
_FRACTION = re.compile(r"^[-+]?\d+(\.\d+)?\s*/\s*\d+(\.\d+)?$")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, plus 8/255 and 1e-3 as numbers."""


def is_fraction(text: str) -> bool:
    """Whether `text` is a number over a number."""
    return bool(_FRACTION.match(text))


def fraction(text: str) -> float:
    """ "8/255" as a number."""
    above, _, below = text.partition("/")
    return float(above) / float(below)


_Loader.add_implicit_resolver("!fraction", _FRACTION, list("-+0123456789"))
_Loader.add_constructor("!fraction", lambda _loader, node: fraction(node.value))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_yaml(text: str) -> Any:
    """The value of a YAML text."""
    return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader


def read_yaml(path: Path) -> dict[str, Any]:
    """A configuration file as a tree of plain values.

    Raises:
        ConfigError: it is missing, not YAML, or not a mapping; with the line where YAML names one.
    """
    try:
        tree = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        names = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
        raise ConfigError(
            describe("config", f"a YAML file or a recipe ({names})", f"'{path}'")
        ) from error
    except (yaml.YAMLError, ZeroDivisionError) as error:
        raise ConfigError(describe("config", "valid YAML", f"'{path}': {error}")) from error
    if not isinstance(tree, dict):
        raise ConfigError(describe("config", "a mapping of fields", f"'{path}'"))
    return tree


def find_config(name: str) -> Path:
    """The file called `name`, or the packaged recipe of that name."""
    recipe = RECIPES / f"{name}.yaml"
    return recipe if not Path(name).exists() and recipe.exists() else Path(name)

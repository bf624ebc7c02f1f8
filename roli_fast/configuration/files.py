"""Configuration files: YAML with fractions."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from roli_fast.errors import ConfigError, describe
from roli_fast.files import check_plain, naming, read_text

RECIPES = Path(__file__).parent.parent / "recipes"

_FRACTION = re.compile(r"^[-+]?\d+(\.\d+)?\s*/\s*\d+(\.\d+)?$")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, plus 8/255 and 1e-3 as numbers; a date stays a text, and a field
    is given once."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for name, count in names.items():
            if count > 1:
                line = node.start_mark.line + 1
                raise ValueError(f"`{name}` stands twice in the mapping of line {line}")
        return super().construct_mapping(node, deep)


def fraction(text: str) -> float:
    """ "8/255" as a number."""
    above, _, below = text.partition("/")
    return float(above) / float(below)


_Loader.add_implicit_resolver("!fraction", _FRACTION, list("-+0123456789"))
_Loader.add_constructor("!fraction", lambda _loader, node: fraction(node.value))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_yaml(text: str, kind: type[yaml.SafeLoader] = _Loader) -> Any:
    """The value of a YAML text.

    Args:
        text: of a file, or a value on the command line.
        kind: what it is to PyYAML; `yaml.SafeLoader` for what `yaml.safe_dump` wrote of texts.

    Raises:
        ValueError: it is none, or names a field twice.
    """
    try:
        tree = yaml.load(text, kind)
    except (yaml.YAMLError, ArithmeticError, LookupError) as error:
        raise ValueError(str(error)) from error
    except RecursionError:
        raise ValueError("nested too deep") from None
    check_plain(tree)
    return tree


def read_yaml(path: Path) -> dict[str, Any]:
    """A configuration file as a tree of plain values.

    Raises:
        ConfigError: it is missing, not YAML, or not a mapping; with the line where YAML names one.
    """
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
        raise ConfigError(describe("config", f"a YAML file or a recipe ({names})", f"'{path}'"))
    with naming(path, ConfigError, "config", "valid YAML, a mapping of fields"):
        tree = load_yaml(read_text(path))
        if not isinstance(tree, dict):
            raise ValueError("it is no mapping")
        return tree


def find_config(name: str) -> Path:
    """The file called `name`, or the packaged recipe of that name."""
    recipe = RECIPES / f"{name}.yaml"
    return recipe if not Path(name).exists() and recipe.exists() else Path(name)

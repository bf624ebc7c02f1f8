"""Configuration files: YAML with fractions."""

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from roli_fast.errors import ConfigError, describe
from roli_fast.files import check_plain, naming, read_text

RECIPES = Path(__file__).parent.parent / "recipes"

MOST = 100_000
"""Values of a YAML text with its aliases written out; a few lines could stand for billions."""

_FRACTION = re.compile(r"^[-+]?\d+(\.\d+)?\s*/\s*\d+(\.\d+)?$")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, plus 8/255 and 1e-3 as numbers; a date stays a text."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


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
        ValueError: it is none, names a field twice, or grows beyond `MOST` values.
    """
    loader = None
    try:
        loader = kind(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MOST:
            raise ValueError(f"aliases make it more than {MOST:,} values")
        tree = loader.construct_document(node)
    except (yaml.YAMLError, ArithmeticError, LookupError) as error:
        raise ValueError(str(error)) from error
    except RecursionError:
        raise ValueError("nested too deep") from None
    finally:
        if loader is not None:
            loader.dispose()
    check_plain(tree)
    return tree


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node stands for with every alias written out; infinite for a circle."""
    if id(node) not in known:
        known[id(node)] = math.inf
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            names = [(key.tag, key.value) for key, _ in parts if isinstance(key, yaml.ScalarNode)]
            if twice := Counter(names) - Counter(set(names)):
                line, (_, name) = node.start_mark.line + 1, next(iter(twice))
                raise ValueError(f"`{name}` stands twice in the mapping of line {line}")
            parts = [part for pair in parts for part in pair]
        known[id(node)] = 1 + sum([_size(part, known) for part in parts])
    return known[id(node)]


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

"""YAML files and command lines become frozen dataclasses, and back; `Schema` is the way."""

from roli_fast.configuration.files import RECIPES as RECIPES
from roli_fast.configuration.files import find_config as find_config
from roli_fast.configuration.files import read_yaml as read_yaml
from roli_fast.configuration.schema import Schema as Schema
from roli_fast.configuration.schema import check_arguments as check_arguments
from roli_fast.configuration.schema import pairs as pairs
from roli_fast.configuration.values import flat as flat
from roli_fast.configuration.values import inside as inside

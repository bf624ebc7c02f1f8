"""How an evaluation's configuration is read and written."""

from typing import Any

from roli_fast.attacks import ATTACKS, Attack
from roli_fast.configuration import Schema
from roli_fast.data import DATASETS, DataSource
from roli_fast.evaluate.assessment import Assessment, Subject
from roli_fast.evaluate.attack_names import attack_tree
from roli_fast.registry import Registry

COMPONENTS: dict[type, Registry[Any]] = {Attack: ATTACKS, DataSource: DATASETS}
"""Where a field of each base type finds its classes by name."""

SCHEMA = Schema(
    Assessment,
    COMPONENTS,
    written={Attack: attack_tree, Subject: lambda text: {"source": text}},
)

"""How a run's configuration is read and written."""

from typing import Any

from roli_fast.attacks import ATTACKS, Attack
from roli_fast.configuration import Schema
from roli_fast.data import DATASETS, DataSource
from roli_fast.peft import METHODS, Method
from roli_fast.registry import Registry
from roli_fast.train.experiment import Experiment
from roli_fast.train.objectives import OBJECTIVES, Objective
from roli_fast.train.schedules import SCHEDULES, Schedule

COMPONENTS: dict[type, Registry[Any]] = {
    Attack: ATTACKS,
    DataSource: DATASETS,
    Method: METHODS,
    Objective: OBJECTIVES,
    Schedule: SCHEDULES,
}
"""Where a field of each base type finds its classes by name."""

SCHEMA = Schema(Experiment, COMPONENTS)

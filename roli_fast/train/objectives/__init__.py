"""What a training step minimises, one objective a file."""

from roli_fast.registry import load_components
from roli_fast.train.objectives.adversarial import Adversarial as Adversarial
from roli_fast.train.objectives.base import OBJECTIVES as OBJECTIVES
from roli_fast.train.objectives.base import Objective as Objective
from roli_fast.train.objectives.base import Terms as Terms

load_components(__name__, __path__)

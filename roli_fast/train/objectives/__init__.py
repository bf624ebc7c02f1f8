"""What a training step minimises, one objective a file."""

from roli_fast.registry import load_components
from roli_fast.train.objectives.adversarial import Adversarial as Adversarial
from roli_fast.train.objectives.avg import AVG as AVG
from roli_fast.train.objectives.base import OBJECTIVES as OBJECTIVES
from roli_fast.train.objectives.base import Objective as Objective
from roli_fast.train.objectives.base import Terms as Terms
from roli_fast.train.objectives.eat import EAT as EAT
from roli_fast.train.objectives.ramp import RAMP as RAMP
from roli_fast.train.objectives.sat import SAT as SAT
from roli_fast.train.objectives.trades import TRADES as TRADES

load_components(__name__, __path__)

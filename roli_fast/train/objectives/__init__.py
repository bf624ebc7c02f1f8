"""What a training step minimises."""

from roli_fast.registry import load_components
from roli_fast.train.objectives.autolora import AutoLoRa as AutoLoRa
from roli_fast.train.objectives.base import OBJECTIVES as OBJECTIVES
from roli_fast.train.objectives.base import TRADES as TRADES
from roli_fast.train.objectives.base import Adversarial as Adversarial
from roli_fast.train.objectives.base import Objective as Objective
from roli_fast.train.objectives.base import Step as Step
from roli_fast.train.objectives.base import Terms as Terms
from roli_fast.train.objectives.base import attach as attach
from roli_fast.train.objectives.base import detach as detach
from roli_fast.train.objectives.ramp import RAMP as RAMP
from roli_fast.train.objectives.several_norms import AVG as AVG
from roli_fast.train.objectives.several_norms import EAT as EAT
from roli_fast.train.objectives.several_norms import SAT as SAT
from roli_fast.train.objectives.twins import TWINS as TWINS

load_components(__name__, __path__)

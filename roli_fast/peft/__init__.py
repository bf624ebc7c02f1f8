"""Tuning methods, one a file. `apply` prepares a model and names what trains."""

from roli_fast.peft.base import METHODS as METHODS
from roli_fast.peft.base import Method as Method
from roli_fast.peft.base import apply as apply
from roli_fast.peft.full import Full as Full
from roli_fast.peft.linear import Linear as Linear
from roli_fast.registry import load_components

load_components(__name__, __path__)

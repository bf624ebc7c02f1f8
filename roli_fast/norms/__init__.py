"""One norm a file. A norm says how an attack starts, steps, and measures distance."""

from roli_fast.norms.base import NORMS as NORMS
from roli_fast.norms.base import Norm as Norm
from roli_fast.registry import load_components

load_components(__name__, __path__)

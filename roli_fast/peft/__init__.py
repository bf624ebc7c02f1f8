"""Tuning methods, one a file. `apply` prepares a model and names what trains."""

from roli_fast.peft.adapter import Adapter as Adapter
from roli_fast.peft.base import METHODS as METHODS
from roli_fast.peft.base import Method as Method
from roli_fast.peft.base import apply as apply
from roli_fast.peft.base import rebuild as rebuild
from roli_fast.peft.bias import Bias as Bias
from roli_fast.peft.full import Full as Full
from roli_fast.peft.linear import Linear as Linear
from roli_fast.peft.lnlora import LNLoRA as LNLoRA
from roli_fast.peft.lora import LoRA as LoRA
from roli_fast.peft.lora import LoraLinear as LoraLinear
from roli_fast.peft.lora import merge as merge
from roli_fast.peft.prompt import Prompt as Prompt
from roli_fast.registry import load_components

load_components(__name__, __path__)

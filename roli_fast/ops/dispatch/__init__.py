"""Takes checked arguments to a kernel where there is one, and to the reference otherwise.

`update` is the way of all ops that update one batch; the others have a file each. `memory` asks
what a tensor is made of.
"""

from roli_fast.ops.dispatch.linf import linf_step_ as linf_step_
from roli_fast.ops.dispatch.lora import lora_dropout as lora_dropout
from roli_fast.ops.dispatch.lora import lora_merge_ as lora_merge_
from roli_fast.ops.dispatch.lora_linear import lora_linear as lora_linear
from roli_fast.ops.dispatch.random import random_start as random_start
from roli_fast.ops.dispatch.select_best import select_best_ as select_best_
from roli_fast.ops.dispatch.update import update as update

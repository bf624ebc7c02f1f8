"""Takes checked arguments to a kernel where there is one, and to the reference otherwise.

One file a family of ops; `step` is the way that they share, `memory` asks
what a tensor is made of.
"""

from roli_fast.ops.dispatch.apgd import apgd_l2_step_ as apgd_l2_step_
from roli_fast.ops.dispatch.apgd import apgd_linf_step_ as apgd_linf_step_
from roli_fast.ops.dispatch.l1 import l1_project_ as l1_project_
from roli_fast.ops.dispatch.l1 import l1_step_ as l1_step_
from roli_fast.ops.dispatch.l2 import l2_project_ as l2_project_
from roli_fast.ops.dispatch.l2 import l2_step_ as l2_step_
from roli_fast.ops.dispatch.linf import linf_step_ as linf_step_
from roli_fast.ops.dispatch.lora import lora_dropout as lora_dropout
from roli_fast.ops.dispatch.lora import lora_merge_ as lora_merge_
from roli_fast.ops.dispatch.lora_linear import lora_linear as lora_linear
from roli_fast.ops.dispatch.random import random_start as random_start
from roli_fast.ops.dispatch.select_best import select_best_ as select_best_

"""The ops as torch.library operators, for graphs that torch.compile captures.

Used only while compiling: in eager mode an operator costs 16 us a call. `eps` and `step_size` are
always tensors here, (1,) or (B,): a Python number would make one graph for every value.
"""

from roli_fast.ops.library.lora import lora_dropout_op as lora_dropout_op
from roli_fast.ops.library.lora import lora_linear as lora_linear
from roli_fast.ops.library.random import random_start_op as random_start_op
from roli_fast.ops.library.select_best import select_best_op as select_best_op
from roli_fast.ops.library.update import apgd_l2_step_op as apgd_l2_step_op
from roli_fast.ops.library.update import apgd_linf_step_op as apgd_linf_step_op
from roli_fast.ops.library.update import fab_l1_step_op as fab_l1_step_op
from roli_fast.ops.library.update import fab_l2_step_op as fab_l2_step_op
from roli_fast.ops.library.update import fab_linf_step_op as fab_linf_step_op
from roli_fast.ops.library.update import l1_project_op as l1_project_op
from roli_fast.ops.library.update import l1_step_op as l1_step_op
from roli_fast.ops.library.update import l2_project_op as l2_project_op
from roli_fast.ops.library.update import l2_step_op as l2_step_op
from roli_fast.ops.library.update import linf_step_op as linf_step_op

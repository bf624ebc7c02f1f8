"""Fused attack updates: a readable reference for each, and kernels that agree with it bit for bit.

`backend(op, device, dtype)` tells which of the two a call takes, and why.
"""

from roli_fast.ops.functional import apgd_l2_step_ as apgd_l2_step_
from roli_fast.ops.functional import apgd_linf_step_ as apgd_linf_step_
from roli_fast.ops.functional import fab_l1_step_ as fab_l1_step_
from roli_fast.ops.functional import fab_l2_step_ as fab_l2_step_
from roli_fast.ops.functional import fab_linf_step_ as fab_linf_step_
from roli_fast.ops.functional import l1_project_ as l1_project_
from roli_fast.ops.functional import l1_random_start as l1_random_start
from roli_fast.ops.functional import l1_step_ as l1_step_
from roli_fast.ops.functional import l2_project_ as l2_project_
from roli_fast.ops.functional import l2_random_start as l2_random_start
from roli_fast.ops.functional import l2_step_ as l2_step_
from roli_fast.ops.functional import linf_random_start as linf_random_start
from roli_fast.ops.functional import linf_step_ as linf_step_
from roli_fast.ops.functional import lora_linear as lora_linear
from roli_fast.ops.functional import lora_merge_ as lora_merge_
from roli_fast.ops.functional import select_best_ as select_best_
from roli_fast.ops.native import Backend as Backend
from roli_fast.ops.native import MissingKernelError as MissingKernelError
from roli_fast.ops.native import backend as backend
from roli_fast.ops.native import build_info as build_info
from roli_fast.ops.native import use_backend as use_backend

"""Fused attack updates and LoRA's layer: each with a kernel and a readable reference, in one file.

`backend(op, device, dtype)` tells which of the two a call takes, and why.
"""

from roli_fast.ops.fab import fab_l1_step_ as fab_l1_step_
from roli_fast.ops.fab import fab_l2_step_ as fab_l2_step_
from roli_fast.ops.fab import fab_linf_step_ as fab_linf_step_
from roli_fast.ops.l1 import l1_project_ as l1_project_
from roli_fast.ops.l1 import l1_step_ as l1_step_
from roli_fast.ops.l2 import apgd_l2_step_ as apgd_l2_step_
from roli_fast.ops.l2 import l2_project_ as l2_project_
from roli_fast.ops.l2 import l2_step_ as l2_step_
from roli_fast.ops.linf import apgd_linf_step_ as apgd_linf_step_
from roli_fast.ops.linf import linf_step_ as linf_step_
from roli_fast.ops.lora import lora_linear as lora_linear
from roli_fast.ops.lora import lora_merge_ as lora_merge_
from roli_fast.ops.native import Backend as Backend
from roli_fast.ops.native import MissingKernelError as MissingKernelError
from roli_fast.ops.native import backend as backend
from roli_fast.ops.native import build_info as build_info
from roli_fast.ops.native import use_backend as use_backend
from roli_fast.ops.random_start import l1_random_start as l1_random_start
from roli_fast.ops.random_start import l2_random_start as l2_random_start
from roli_fast.ops.random_start import linf_random_start as linf_random_start
from roli_fast.ops.select_best import select_best_ as select_best_

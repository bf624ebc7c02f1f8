"""The public ops: they check every argument and pass it on. One file a family of ops."""

from roli_fast.ops.functional.apgd import apgd_l2_step_ as apgd_l2_step_
from roli_fast.ops.functional.apgd import apgd_linf_step_ as apgd_linf_step_
from roli_fast.ops.functional.fab import fab_l1_step_ as fab_l1_step_
from roli_fast.ops.functional.fab import fab_l2_step_ as fab_l2_step_
from roli_fast.ops.functional.fab import fab_linf_step_ as fab_linf_step_
from roli_fast.ops.functional.l1 import l1_project_ as l1_project_
from roli_fast.ops.functional.l1 import l1_step_ as l1_step_
from roli_fast.ops.functional.l2 import l2_project_ as l2_project_
from roli_fast.ops.functional.l2 import l2_step_ as l2_step_
from roli_fast.ops.functional.linf import linf_step_ as linf_step_
from roli_fast.ops.functional.lora import lora_linear as lora_linear
from roli_fast.ops.functional.lora import lora_merge_ as lora_merge_
from roli_fast.ops.functional.random import l1_random_start as l1_random_start
from roli_fast.ops.functional.random import l2_random_start as l2_random_start
from roli_fast.ops.functional.random import linf_random_start as linf_random_start
from roli_fast.ops.functional.select_best import select_best_ as select_best_

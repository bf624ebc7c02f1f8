"""The specification of every fused op, in plain PyTorch, out of place, for any float dtype.

One file a family of ops; what they share is in `rounding`.

Arithmetic: read, compute in fp32 (fp64 for fp64 tensors), round once to the storage dtype, then
clamp. `eps` and `step_size` mean their value in the compute dtype. The limits of the ball are
rounded *inward* in the storage dtype: plain rounding of `x - eps` leaves the ball in 27 % of fp16,
5 % of bf16 and 9 % of fp32 pixels. A result of zero is always +0.
"""

from roli_fast.ops.reference.apgd import apgd_l2_step as apgd_l2_step
from roli_fast.ops.reference.apgd import apgd_linf_step as apgd_linf_step
from roli_fast.ops.reference.fab import fab_l1_step as fab_l1_step
from roli_fast.ops.reference.fab import fab_l2_step as fab_l2_step
from roli_fast.ops.reference.fab import fab_linf_step as fab_linf_step
from roli_fast.ops.reference.l1 import l1_project as l1_project
from roli_fast.ops.reference.l1 import l1_step as l1_step
from roli_fast.ops.reference.l2 import l2_project as l2_project
from roli_fast.ops.reference.l2 import l2_step as l2_step
from roli_fast.ops.reference.l2 import rounding_slack as rounding_slack
from roli_fast.ops.reference.linf import linf_ball as linf_ball
from roli_fast.ops.reference.linf import linf_step as linf_step
from roli_fast.ops.reference.lora import dropout_threshold as dropout_threshold
from roli_fast.ops.reference.lora import lora_apply as lora_apply
from roli_fast.ops.reference.lora import lora_dropout as lora_dropout
from roli_fast.ops.reference.lora import lora_linear as lora_linear
from roli_fast.ops.reference.lora import lora_merge as lora_merge
from roli_fast.ops.reference.random import l1_random_start as l1_random_start
from roli_fast.ops.reference.random import l2_random_start as l2_random_start
from roli_fast.ops.reference.random import linf_random_start as linf_random_start
from roli_fast.ops.reference.rounding import box_limits as box_limits
from roli_fast.ops.reference.rounding import compute_dtype as compute_dtype
from roli_fast.ops.reference.select_best import improved as improved
from roli_fast.ops.reference.select_best import select_best as select_best

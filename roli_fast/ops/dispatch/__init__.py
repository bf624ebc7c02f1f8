"""Takes checked arguments to a kernel where there is one, and to the reference otherwise.

One file a family of ops; `memory` asks what a tensor is made of.
"""

from roli_fast.ops.dispatch.l1 import l1_project_ as l1_project_
from roli_fast.ops.dispatch.l1 import l1_step_ as l1_step_
from roli_fast.ops.dispatch.linf import linf_step_ as linf_step_
from roli_fast.ops.dispatch.random import random_start as random_start

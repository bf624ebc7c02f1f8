"""Takes checked arguments to a kernel where there is one, and to the reference otherwise.

One file a family of ops; `memory` asks what a tensor is made of.
"""

from roli_fast.ops.dispatch.linf import linf_step_ as linf_step_

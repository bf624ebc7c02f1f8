"""The public ops: they check every argument and pass it on. One file a family of ops."""

from roli_fast.ops.functional.linf import linf_random_start as linf_random_start
from roli_fast.ops.functional.linf import linf_step_ as linf_step_

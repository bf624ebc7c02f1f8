"""Gradient checkpointing: a block whose forward is done again in the backward pass."""

import torch


def is_recomputed() -> bool:
    """Whether what a forward saves now goes through hooks, as in `torch.utils.checkpoint`.

    The second forward runs outside of what surrounds a model's passes, by torch's own functions,
    and has to save the same tensors as the first: which then takes torch's own functions too.
    """
    if torch.compiler.is_compiling():  # which sees to this itself, and could not follow
        return False
    top = getattr(getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", None)
    return top is not None and top(False) is not None

"""Training forwards of several images a sample: one where that is the same, else one for each."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from roli_fast.engine import Engine

DROP_FIELDS = ("p", "prob", "drop", "dropout", "drop_prob", "drop_rate")
"""Where modules keep the probability of what they leave out: Dropout, DropPath, DropBlock, patch
dropout and stochastic depth, of torch, timm and torchvision; attention and recurrent layers; LoRA;
and networks of timm that call torch's dropout themselves."""


def is_independent(model: nn.Module) -> bool:
    """Whether a forward in the modes that the modules are in gives each image the logits that it
    would get in any other batch, and leaves nothing behind.

    Not so where a module normalises by the batch, keeps running statistics of it, or draws: told by
    looking at every module, as networks say it nowhere. It is not so for a module in training mode
    that is a BatchNorm or has a buffer running_mean or running_var, that has a number above 0 in
    one of `DROP_FIELDS`, or is RReLU; and for a BatchNorm without running statistics in any mode.
    A network that draws by itself, in none of these ways, is not seen.
    """
    return not any(map(_looks_at_the_batch_or_draws, model.modules()))


def _looks_at_the_batch_or_draws(module: nn.Module) -> bool:
    if isinstance(module, _BatchNorm) and module.running_mean is None:
        return True
    if not module.training:
        return False
    if isinstance(module, (_BatchNorm, nn.RReLU)):
        return True
    own, buffers = vars(module), dict(module.named_buffers(recurse=False))
    if any(name in buffers for name in ("running_mean", "running_var")):
        return True
    chances = [own.get(name) for name in DROP_FIELDS]
    return any(isinstance(chance, (int, float)) and chance > 0 for chance in chances)


def logits_of(model: nn.Module, images: Sequence[Tensor], engine: Engine) -> list[Tensor]:
    """Logits (B, C) of each of these batches (B, ...), in their order.

    One forward of all together where the model is independent: the same but for rounding, and in
    one pass that fills the device better. Else one forward each, as the methods' authors make them:
    a BatchNorm normalises each by its own statistics, and its running ones see all.
    """
    if len(images) > 1 and is_independent(model):
        together = model(engine.to_memory_format(torch.cat([*images])))
        return [*together.split([len(batch) for batch in images])]
    return [model(engine.to_memory_format(batch)) for batch in images]

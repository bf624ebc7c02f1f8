"""What a recording of a model's passes depends on: what is in it, and where its tensors lie."""

from collections.abc import Hashable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from roli_fast.errors import ArgumentError, describe

_PLAIN = (bool, int, float, str)


class Look(NamedTuple):
    """What passes depend on besides their inputs: values that are recorded as they are, and tensors
    that are read where they lie."""

    state: Hashable
    tensors: list[Tensor]


class _Place(NamedTuple):
    """Where a tensor lies, and how."""

    address: int
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


def look_at(model: nn.Module) -> Look:
    """All modules, their hooks, numbers and words, and their tensors: parameters, buffers, and
    plain attributes, merged weights say."""
    state: list[Hashable] = []
    tensors: list[Tensor] = []
    for module in model.modules():
        state.append((id(module), *module._forward_pre_hooks, *module._forward_hooks))
        for table in (module._parameters, module._buffers, vars(module)):
            for value in table.values():
                if isinstance(value, Tensor):
                    tensors.append(value)
                elif type(value) in _PLAIN:
                    state.append(value)
    return Look(tuple(state), tensors)


def settings(device: torch.device) -> Hashable:
    """What is set in torch that passes depend on."""
    kind = device.type
    auto = torch.is_autocast_enabled(kind)
    return (
        torch.get_autocast_dtype(kind) if auto else None,
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.allow_tf32,
    )


def places_of(look: Look) -> Hashable:
    """The look in a form that can be compared, and holds no tensor."""
    at = [_Place(t.data_ptr(), t.shape, t.stride(), t.dtype) for t in look.tensors]
    return look.state, tuple(at)


def check_devices(read: Iterable[Tensor], device: torch.device) -> None:
    """Raise where a tensor lies elsewhere: what a kernel takes from there is recorded as a number,
    and another GPU's work is not recorded."""
    for tensor in read:
        if tensor.device != device:
            raise ArgumentError(describe("model", f"all tensors on {device}", tensor.device))

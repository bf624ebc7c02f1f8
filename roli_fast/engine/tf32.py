"""TF32 for fp32 products on a GPU, as an engine asks for it, while its passes run."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@contextlib.contextmanager
def set_tf32(allowed: bool | None) -> Iterator[None]:
    """Inside `with`: whether products and convolutions of fp32 tensors on a GPU may be rounded to
    TF32; None leaves it as torch has it.

    torch 2.9 has a setting for each operation beside the older switches, and raises where a switch
    is read that says another thing: so both are set, and both are put back.
    """
    if allowed is None:
        yield
        return
    backends = torch.backends
    operations = [(backends.cuda, "matmul"), (backends.cudnn, "conv"), (backends.cudnn, "rnn")]
    operations += [(backends.mkldnn, "matmul")]  # which the precision of products sets as well
    settings: list[Any] = [getattr(backend, name, None) for backend, name in operations]
    before = [(s, s.fp32_precision) for s in settings if hasattr(s, "fp32_precision")]
    precision = _read(torch.get_float32_matmul_precision)
    convolutions = _read(lambda: backends.cudnn.allow_tf32)
    backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = allowed
    for setting, _ in before[:3]:  # the switch off would leave a setting for all backends in force
        setting.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        if precision is not None:
            torch.set_float32_matmul_precision(precision)
        if convolutions is not None:
            backends.cudnn.allow_tf32 = convolutions
        for setting, value in before:
            setting.fp32_precision = value


def _read(switch: Callable[[], T]) -> T | None:
    """An older switch, of which torch warns; None where its newer settings say another thing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return switch()
        except RuntimeError:
            return None

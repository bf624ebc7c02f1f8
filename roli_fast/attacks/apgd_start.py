"""Where APGD starts."""

import math
from typing import Protocol

import torch
from torch import Generator, Tensor

from roli_fast import ops
from roli_fast.attacks.base import restart_generators
from roli_fast.attacks.passes import Samples
from roli_fast.norms import NORMS
from roli_fast.threat import Bounds


class Starts(Protocol):
    """Source of a call's starts."""

    def __call__(self, number: int, norm: str, samples: Samples, bounds: Bounds) -> Tensor:
        """New tensor: the starts of restart `number` for samples whose eps is the first stage's."""
        ...


class OwnStarts:
    """Each start depends on the generator, the restart and the sample's id alone."""

    def __init__(self, generator: Generator | None, count: int, device: torch.device) -> None:
        self._generators = restart_generators(generator, count, device)

    def __call__(self, number: int, norm: str, samples: Samples, bounds: Bounds) -> Tensor:
        """Uniform in the ball; in L1, where that is dense, a Gaussian point projected on it."""
        x, eps, source = samples.x, samples.eps, self._generators[number]
        if norm != "l1":
            return NORMS[norm].random_start(
                x, eps=eps, bounds=bounds, generator=source, sample_ids=samples.ids
            )
        # uniform in the ball of radius sqrt(d): standard normal entries, but for an O(1/d)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        noise = ops.l2_random_start(
            torch.zeros_like(x, dtype=wide),
            eps=math.sqrt(x.shape[1:].numel()),
            bounds=(-1e30, 1e30),
            generator=source,
            sample_ids=samples.ids,
        )
        start = (x + (bounds[1] - bounds[0]) * noise).to(x.dtype)
        return ops.l1_project_(start, x, eps=eps, bounds=bounds)

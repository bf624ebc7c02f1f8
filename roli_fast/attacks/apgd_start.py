"""Where APGD starts."""

from typing import Protocol

import torch
from torch import Generator, Tensor

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
        """By the norm's `search_start`."""
        return NORMS[norm].search_start(
            samples.x,
            eps=samples.eps,
            bounds=bounds,
            generator=self._generators[number],
            sample_ids=samples.ids,
        )

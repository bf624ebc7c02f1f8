"""Where APGD starts: from draws by seed and sample id, or from those of the authors' code."""

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


class OfficialStarts:
    """The draws of github.com/fra31/auto-attack, in its order and arithmetic, for one batch.

    They depend on the batch: on its size, and on who is left of it at each restart. A private
    generator is seeded as that code seeds the global one.
    """

    def __init__(self, seed: int, device: torch.device, stages: int) -> None:
        self._cpu = Generator().manual_seed(seed)
        on_cpu = device.type == "cpu"
        self._device = self._cpu if on_cpu else Generator(device).manual_seed(seed)
        self._stages = stages

    def __call__(self, number: int, norm: str, samples: Samples, bounds: Bounds) -> Tensor:
        """As that code draws: at the ball's boundary in linf and l2, projected noise in l1."""
        x, eps = samples.x, samples.eps
        if self._stages > 1:
            return self._large_radius(samples, bounds)
        draw = torch.rand if norm == "linf" else torch.randn
        noise = draw(x.shape, generator=self._cpu).to(x.device)
        column = [-1, *[1] * (x.ndim - 1)]
        radius = eps.view(column) if isinstance(eps, Tensor) else eps
        if norm == "linf":
            noise = 2 * noise - 1
            unit = noise / (noise.abs().flatten(1).amax(1).view(column) + 1e-12)
            start = (x + radius * torch.ones_like(x) * unit).to(x.dtype)
            # a step of 0 is the projection, which rounds into the ball
            return ops.linf_step_(start, x, x, eps=eps, step_size=0.0, bounds=bounds)
        if norm == "l2":
            length = noise.square().flatten(1).sum(1).sqrt()
            unit = noise / (length.view(column) + 1e-12)
            start = (x + radius * torch.ones_like(x) * unit).to(x.dtype)
            return ops.l2_project_(start, x, eps=eps, bounds=bounds)
        return ops.l1_project_((x + noise).to(x.dtype), x, eps=eps, bounds=bounds)

    def _large_radius(self, samples: Samples, bounds: Bounds) -> Tensor:
        """That code projects x + noise as if it were a change of x, and takes the projected change
        for a point; and it draws a start for every stage, which it does not use."""
        x, eps = samples.x, samples.eps
        noise = torch.randn(x.shape, generator=self._device, device=x.device, dtype=x.dtype)
        shifted = ops.l1_project_(x + (x + noise), x, eps=eps, bounds=bounds)
        for _ in range(self._stages):
            torch.randn(x.shape, generator=self._cpu)
        return ops.l1_project_(shifted - x, x, eps=eps, bounds=bounds)

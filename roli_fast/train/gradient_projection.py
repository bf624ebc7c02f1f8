"""Gradient projection (RAMP: Jiang & Singh, NeurIPS 2024, arXiv:2402.06827, algorithm 2).

From the same weights one epoch goes on clean images and one on the stage's objective; what the
clean one changed is added as far as it points the same way, tensor by tensor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from roli_fast.errors import ArgumentError, check_choice, describe

Projection = Literal["cosine", "true"]


@dataclass(frozen=True)
class GradientProjection:
    """Each epoch is made of two from the same weights, one on clean images, and their merge.

    The clean one is plain cross-entropy with an optimiser of its own, of the same settings and at
    the same rates. It costs one forward and one backward a sample, and three copies of what trains.

    Args:
        beta: weight of the clean epoch's part, in [0, 1]; the stage's own has 1 - beta.
        projection: length of that part: "cosine", the clean change times the cosine between both,
            as the release has it; or "true" (in YAML in quotes), the projection of the stage's own
            change on it, as in the paper's appendix.
        merge_statistics: whether running statistics of BatchNorm are merged like weights, as in the
            release; false keeps those of the stage's own epoch.
    """

    beta: float = 0.5
    projection: Projection = "cosine"
    merge_statistics: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ArgumentError(describe("beta", "a number in [0, 1]", self.beta))
        check_choice("projection", self.projection, get_args(Projection))

    def merged(
        self,
        start: Mapping[str, Tensor],
        natural: Mapping[str, Tensor],
        adversarial: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """The weights after an epoch, from those of both its halves.

        With g_n = natural - start and g_a = adversarial - start of one tensor, all its elements as
        one vector, and c their cosine:

            start + beta * p + (1 - beta) * g_a,
            p = max(c, 0) * g_n                       "cosine"
            p = max(<g_a, g_n>, 0) / ||g_n||^2 * g_n  "true"

        Both are 0 where the cosine is not above 0 or a change is 0. Weights, biases and statistics
        each have a cosine of their own. Tensors of one number (a count of batches, a scale of
        logits) and those that are not floating-point are the adversarial model's.

        Args:
            start: name -> tensor, both halves' first weights: a state dict or a part of one.
            natural: the same after the clean epoch.
            adversarial: the same after the other one.
        """
        out: dict[str, Tensor] = {}
        for name, first in start.items():
            statistic = name.endswith(("running_mean", "running_var"))
            kept = statistic and not self.merge_statistics
            if kept or first.ndim == 0 or not first.is_floating_point():
                out[name] = adversarial[name]
            else:
                out[name] = self._merged(first, natural[name], adversarial[name])
        return out

    @torch.no_grad()
    def _merged(self, start: Tensor, natural: Tensor, own: Tensor) -> Tensor:
        """One tensor, in fp64 and rounded once; no host waits for the numbers."""
        base = start.double()
        clean, change = natural.double() - base, own.double() - base
        a, b = clean.flatten(), change.flatten()
        if self.projection == "cosine":
            length = functional.cosine_similarity(a, b, dim=0).clamp(min=0)
        else:
            length = (a.dot(b).clamp(min=0) / a.dot(a)).nan_to_num(0.0)
        merged = base + self.beta * length * clean + (1 - self.beta) * change
        return merged.to(start.dtype)

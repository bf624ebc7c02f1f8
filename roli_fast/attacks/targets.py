"""Which wrong class a targeted attack aims at."""

from torch import Generator, Tensor

from roli_fast import ops
from roli_fast.errors import ArgumentError, describe

RULES = ("least_likely", "random")


def choose(rule: str, clean: Tensor, y: Tensor, generator: Generator | None, ids: Tensor) -> Tensor:
    """One target class a sample, (B,).

    Args:
        rule: "least_likely", the class of lowest clean logit, or "random", any class but `y`.
        clean: logits (B, C) of the clean images.
        y: labels (B,).
        generator: one draw is taken from it by "random"; a sample's class depends on it and on the
            sample's id alone.
        ids: the samples' ids (B,).
    """
    classes = _classes(clean)
    if rule == "least_likely":
        return clean.float().scatter(1, y[:, None], float("inf")).argmin(1)
    zeros = clean.new_zeros(len(y), 1).float()
    uniform = ops.linf_random_start(
        zeros, eps=1.0, bounds=(-1.0, 1.0), generator=generator, sample_ids=ids
    )[:, 0]
    offset = ((uniform + 1) / 2 * (classes - 1)).long().clamp(max=classes - 2)
    return (y + 1 + offset) % classes


def most_likely_others(clean: Tensor, y: Tensor, count: int) -> Tensor:
    """The `count` most likely wrong classes of each sample, (B, count), likeliest first.

    APGD-T and FAB-T attack them one after another; `count` is cut to C - 1.
    """
    wrong = clean.scatter(1, y[:, None], -float("inf"))
    order = wrong.sort(dim=1, descending=True).indices
    return order[:, : min(count, _classes(clean) - 1)]


def _classes(clean: Tensor) -> int:
    classes = clean.shape[1]
    if classes < 2:
        fix = "There is no wrong class to aim at."
        raise ArgumentError(describe("model", "a model with at least 2 classes", classes, fix))
    return classes

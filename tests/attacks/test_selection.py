"""A search's samples taken apart and put together."""

import torch
from tiny_models import images

from roli_fast.attacks.objective import Goal
from roli_fast.attacks.passes import Samples
from roli_fast.attacks.selection import parts_of, with_tensors

X, Y, IDS = images(2, 3), torch.tensor([0, 1]), torch.tensor([5, 6])


def test_tensors_apart_from_all_else() -> None:
    tensors, rest = parts_of(Samples(X, Goal("dlr", Y, Y + 1), IDS, 0.5))
    assert [t is u for t, u in zip(tensors, (X, Y), strict=False)] == [True, True]
    assert len(tensors) == 4
    _, other = parts_of(Samples(X, Goal("dlr", Y, Y + 1), IDS, 0.25))
    assert hash(rest) != hash(other) and rest != other


def test_where_tensors_are_is_told_apart() -> None:
    """A target is no clean logits, a radius a sample is no number."""
    forms = [
        Samples(X, Goal("kl", Y, clean=X), IDS, 0.5),
        Samples(X, Goal("kl", Y, target=X), IDS, 0.5),
        Samples(X, Goal("kl", Y, target=X), IDS, X[:, 0]),
    ]
    assert len({parts_of(form)[1] for form in forms}) == 3


def test_put_together_again() -> None:
    samples = Samples(X, Goal("margin", Y, clean=X), IDS, X[:, 0])
    tensors, rest = parts_of(samples)
    copies = [tensor.clone() for tensor in tensors]
    made = with_tensors(samples, iter(copies))
    again, same = parts_of(made)
    assert same == rest
    assert all(a is b for a, b in zip(again, copies, strict=True))
    assert made.goal.loss == "margin"

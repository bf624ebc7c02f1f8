"""Regression on a kernel: sklearn's on the features where these are known."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from roli_fast.analysis import kernel_regression


def blobs(count: int = 30, size: int = 4, spread: float = 1.5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(count) % 3
    centres = 2 * torch.eye(3, size)
    noise = torch.randn(count, size, generator=generator)
    return (centres[y] + spread * noise).double(), y


def of_features(phi: Tensor, theirs: Tensor, classes: int = 3) -> Tensor:
    """The kernel of a linear model: <phi, phi'> I_C."""
    return torch.kron(phi @ theirs.t(), torch.eye(classes, dtype=phi.dtype))


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
def test_on_a_linear_kernel_it_is_sklearns(strength: float) -> None:
    phi, y = blobs()
    train, test = phi[:20], phi[20:]
    size = float(train.square().sum(1).mean())
    found = kernel_regression(
        of_features(train, train), y[:20], of_features(test, train), y[20:], strengths=(strength,)
    )
    model = LogisticRegression(C=strength / size, fit_intercept=False, tol=1e-10, max_iter=5000)
    model.fit(train.numpy(), y[:20].numpy())
    assert found.scores.numpy() == pytest.approx(
        model.decision_function(test.numpy()), rel=1e-3, abs=1e-3
    )
    assert found.test == model.score(test.numpy(), y[20:].numpy())
    assert found.train == model.score(train.numpy(), y[:20].numpy())
    assert found.strength == strength


def test_accuracy_is_by_argmax_beside_the_trivial_predictor() -> None:
    """The paper's N C binary decisions would be 2/3 right by never saying yes."""
    phi, y = blobs(spread=0.2)
    uneven = torch.where(torch.arange(30) % 2 == 0, 0, y)
    kernel = of_features(phi, phi)
    found = kernel_regression(kernel, y, kernel, y)
    assert found.train == found.test == found.validation == 1.0 and found.trivial == 1 / 3
    noise = torch.eye(90).double()  # every logit of every sample its own direction
    found = kernel_regression(noise, uneven, 0 * noise, uneven)
    assert found.train == 1.0 and found.trivial == float((uneven == 0).double().mean())


def test_the_scale_of_the_kernel_plays_no_part() -> None:
    phi, y = blobs()
    kernel = of_features(phi, phi)
    small = kernel_regression(1e-4 * kernel, y, 1e-4 * kernel, y)
    large = kernel_regression(kernel, y, kernel, y)
    assert small.strength == large.strength and small.validation == large.validation
    assert torch.allclose(small.scores, large.scores, rtol=1e-3, atol=1e-3)

"""The empirical kernel against Jacobians written out, and what is read off it."""

import pytest
import torch
from explicit import Mlp, close, jacobians
from networks import KINDS, Cubed, case
from tiny_models import images, untouched
from torch import Tensor

from roli_fast.analysis import Kernel, empirical_ntk, one_step, top_eigenvalues
from roli_fast.analysis.ntk import gradient_passes
from roli_fast.errors import ArgumentError


def explicit(own, columns: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """(P, F), both (N C, N C)."""
    found = jacobians(own.model, own.head, own.names, own.x[columns])
    return found.of_head @ found.of_head.t(), found.of_logits @ found.of_logits.t()


@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_is_the_explicit_one(kind: str) -> None:
    own = case(kind)
    some = slice(0, 3)
    with untouched(own.model):
        found = empirical_ntk(own.view, own.x[some], names=own.names)
    head, backbone = explicit(own, some)
    assert close(found.F, backbone)
    assert close(found.matrix("P"), head) and close(found.matrix("F"), backbone)
    assert close(found.matrix(), head + backbone)


def test_blocks_play_no_part() -> None:
    own = case("mlp")
    whole = empirical_ntk(own.model, own.x)
    least = 8 * 8 * 18**2  # what a kernel of 18 rows needs: 54 of 64 parameters fit beside it
    little = empirical_ntk(own.model, own.x, memory=least)
    assert close(little.F, whole.F, 1e-12) and torch.equal(little.P_gram, whole.P_gram)
    assert (gradient_passes(18, 8, 64, least), gradient_passes(18, 8, 64)) == (2, 1)
    done: list[int] = []
    empirical_ntk(own.model, own.x, memory=least, after_batch=done.append)
    assert sum(done) == (1 + 2) * 6


def test_without_a_rule_for_batched_gradients_it_goes_one_by_one() -> None:
    own, cubed = case("mlp"), Cubed()
    found = empirical_ntk(cubed, own.x)
    truth = jacobians(cubed, "head", own.names, own.x)
    assert close(found.F, truth.of_logits @ truth.of_logits.t())


def test_the_step_is_the_kernel_times_residuals() -> None:
    own = case("text")
    kernel = empirical_ntk(own.view, own.x)
    found = one_step(own.view, own.batches(slice(0, 4)), own.batches(slice(4, 6)))
    train, test = torch.arange(4), torch.arange(4, 6)
    own.model.eval()
    logits = own.model(own.x[:4]).detach()
    delta = torch.nn.functional.one_hot(own.y[:4], 3) - logits.softmax(1)
    for part, predicted in (("F", found.backbone_part), ("NTK", found.logits)):
        moved = kernel.matrix(part, test, train) @ delta.flatten()
        assert close(moved.view(2, 3), predicted)


def made(images: int = 4, classes: int = 3, rank: int = 2) -> Kernel:
    """A kernel of known rank: F = G G^T, P_gram of rank 1."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(images * classes, rank, generator=generator, dtype=torch.float64)
    gram = torch.full((images, images), 2.0, dtype=torch.float64)
    return Kernel(gram, rows @ rows.t(), classes)


def test_rank_spectrum_and_norm() -> None:
    kernel = made()
    assert kernel.rank("F") == 2 and kernel.rank("P") == 3 and kernel.rank("NTK") == 5
    for part in ("P", "F", "NTK"):
        whole = kernel.matrix(part)
        values = torch.linalg.eigvalsh(whole).flip(0)
        assert torch.allclose(kernel.spectrum(part), values, atol=1e-12)
        assert kernel.rank(part) == int(torch.linalg.matrix_rank(whole, hermitian=True))
        assert kernel.frobenius(part) == pytest.approx(float(whole.norm()))
    # P_gram = 2 1 1^T has the eigenvalue 8, in each of three classes
    assert torch.allclose(kernel.spectrum("P")[:3], torch.full((3,), 8.0).double())
    assert kernel.rank("P", tol=1.0) == 0


def test_parts_of_a_matrix() -> None:
    kernel = made()
    rows, columns = torch.tensor([3, 0]), torch.tensor([1, 2, 3])
    for part in ("P", "F", "NTK"):
        whole = kernel.matrix(part).view(4, 3, 4, 3)
        some = kernel.matrix(part, rows, columns).view(2, 3, 3, 3)
        assert torch.equal(some, whole[rows][:, :, columns])
    with pytest.raises(ArgumentError, match="`part`"):
        kernel.matrix("G")  # pyright: ignore[reportArgumentType]


def test_above_the_budget_it_is_refused_before_it_runs() -> None:
    model, x = Mlp(), images(6, 5).double()
    with pytest.raises(ArgumentError) as caught:
        empirical_ntk(model, x, memory=8 * 8 * 12**2)
    assert str(caught.value) == (
        "`x`: expected N x C whose kernel takes at most 1/8 of `memory`, 9,216 bytes, got"
        " 6 inputs x 3 classes = 18: 2,592 bytes. At most 4 inputs of 3 classes fit: take fewer,"
        " or set `memory` to 20,736; or use what builds no kernel: one_step or top_eigenvalues."
    )
    assert empirical_ntk(model, x[:4], memory=8 * 8 * 12**2).images == 4
    assert empirical_ntk(model, x, memory=20736).images == 6


@pytest.mark.parametrize("part", ["F", "NTK"])
def test_top_eigenvalues_without_the_kernel(part) -> None:
    own = case("text")
    with untouched(own.model):
        found = top_eigenvalues(own.view, own.batches(slice(None)), 4, part=part, tol=1e-12)
    truth = empirical_ntk(own.view, own.x).spectrum(part)[:4]
    assert close(found, truth, 1e-9)

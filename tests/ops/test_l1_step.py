"""What the L1 step computes: by hand, against AutoAttack's formula, and special values."""

import l1_exact
import pytest
import torch
from torch import Tensor

from roli_fast import ops
from roli_fast.ops import native

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FAR = 1e6  # a ball in which no step ends


@pytest.fixture(params=native.BACKENDS)
def backend(request):
    """Every test here runs on both implementations (twice on the reference without `_C`)."""
    with ops.use_backend(request.param):
        yield request.param


def step(x_adv, grad, x, **options) -> Tensor:
    options = {"eps": FAR, "step_size": 0.5, "density": 0.5, "bounds": (-1e4, 1e4)} | options
    return ops.l1_step_(x_adv.clone(), grad, x, **options)


def test_hand_worked_numbers(backend):
    x = torch.full((1, 4), 0.5)
    grad = torch.tensor([[3.0, -0.5, -7.0, 1e-30]])
    x_adv = x.clone()
    moved = ops.l1_step_(x_adv, grad, x, eps=1.0, step_size=0.25, density=0.5)
    assert moved is x_adv and moved.tolist() == [[0.625, 0.5, 0.375, 0.5]]
    ops.l1_step_(x_adv, grad, x, eps=1.0, step_size=0.25, density=0.25)
    assert moved.tolist() == [[0.625, 0.5, 0.125, 0.5]]
    ops.l1_step_(x_adv, grad, x, eps=0.25, step_size=0.0, density=1.0)
    assert torch.allclose(moved, torch.tensor([[0.5, 0.5, 0.25, 0.5]]), rtol=0, atol=1e-7)


@pytest.mark.parametrize("size", [1, 2, 10, 57, 3072])
def test_autoattack_moves_the_same_entries(backend, size):
    generator = torch.Generator().manual_seed(size)
    grad = torch.randn(40, size, generator=generator)
    grad[:, ::4] = grad[:, :1].clone()  # ties
    x = torch.rand(40, size, generator=generator)
    density = torch.rand(40, generator=generator)
    density[:6] = torch.tensor([0.0, 1.0, 0.2, 0.05, 1e-4, 0.999])
    length = torch.linspace(0.0, 3.0, 40)
    moved = step(x, grad, x, step_size=length, density=density)
    expected = l1_exact.autoattack_step(x, grad, length, density)
    assert torch.equal(moved != x, expected != x)
    assert (moved - expected).abs().max() < 3e-7


def test_a_step_has_its_length(backend):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 3, 32, 32, generator=generator, dtype=torch.float64).float()
    grad = torch.randn(x.shape, generator=generator)
    moved = step(x, grad, x, step_size=12.0, density=0.05)
    length = (moved.double() - x.double()).abs().flatten(1).sum(1)
    assert torch.allclose(length, torch.full((4,), 12.0).double(), rtol=1e-5)
    assert ((moved != x).flatten(1).sum(1) == 3072 - int(0.95 * 3072)).all()


def test_ties_move_together(backend):
    x = torch.full((1, 6), 0.5)
    grad = torch.tensor([[1.0, -1.0, 1.0, 0.5, -0.5, 0.25]])
    moved = step(x, grad, x, step_size=0.375, density=1 / 6)
    assert moved.tolist() == [[0.625, 0.375, 0.625, 0.5, 0.5, 0.5]]


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_zeros_do_not_count(backend, density):
    x = torch.full((2, 5), 0.5)
    grad = torch.tensor([[0.0, -0.0, 0.0, 0.0, 0.0], [0.0, 0.0, -2.0, 0.0, -0.0]])
    moved = step(x, grad, x, step_size=0.25, density=density)
    assert moved.tolist() == [[0.5] * 5, [0.5, 0.5, 0.25, 0.5, 0.5]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_non_finite_gradients_count_as_zero(backend, dtype):
    inf, nan = float("inf"), float("nan")
    grad = torch.tensor([[nan, inf, -inf, 1.0, -2.0, 0.0]], dtype=dtype)
    x = torch.full_like(grad, 0.5)
    assert step(x, grad, x, step_size=0.25, density=1 / 6).tolist() == [[0.5] * 4 + [0.25, 0.5]]
    assert step(x, grad, x, step_size=0.25, density=1.0).tolist() == [
        [0.5, 0.5, 0.5, 0.625, 0.375, 0.5]
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_smallest_gradient_has_a_sign(backend, dtype):
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    grad = torch.tensor([[tiny, -2 * tiny, -0.0]], dtype=torch.float64).to(dtype)
    x = torch.full_like(grad, 0.5)
    assert step(x, grad, x, step_size=0.25, density=0.1).tolist() == [[0.5, 0.25, 0.5]]
    assert step(x, grad, x, step_size=0.25, density=1.0).tolist() == [[0.625, 0.375, 0.5]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("eps", [0.0, 0.3, 4.0])
def test_ends_in_ball_and_box(backend, dtype, eps):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(3, 3, 8, 8, generator=generator).to(dtype)
    x_adv = x.clone()
    for _ in range(4):
        grad = torch.randn(x.shape, generator=generator).to(dtype)
        options = {"eps": eps, "step_size": 1.0, "density": 0.1, "bounds": (0.0, 1.0)}
        apart = step(x_adv, grad, x, **options)
        free = step(x_adv, grad, x, **options | {"eps": FAR, "bounds": (-1e4, 1e4)})
        x_adv = ops.l1_step_(x_adv, grad, x, **options)
        assert torch.equal(apart, x_adv)
        # A step is the sparse move, rounded once, and then the projection.
        assert torch.equal(ops.l1_project_(free, x, eps=eps), x_adv)
        length = (x_adv.double() - x.double()).abs().flatten(1).sum(1)
        assert (length <= torch.tensor(eps).double()).all()
        assert (x_adv >= 0).all() and (x_adv <= 1).all()


def test_a_sample_neither_sees_its_batch_nor_its_place(backend):
    generator = torch.Generator().manual_seed(2)
    x, grad = torch.rand(5, 70, generator=generator), torch.randn(5, 70, generator=generator)
    amounts = {
        "eps": torch.tensor([0.1, 0.0, 2.0, 50.0, 1.0]),
        "step_size": torch.tensor([1.0, 2.0, 0.0, 30.0, 0.5]),
        "density": torch.tensor([0.05, 0.5, 1.0, 0.2, 0.0]),
    }
    whole = step(x, grad, x, **amounts)
    turn = torch.tensor([4, 2, 0, 1, 3])
    turned = {name: value[turn] for name, value in amounts.items()}
    assert torch.equal(step(x[turn], grad[turn], x[turn], **turned), whole[turn])
    for i in range(5):
        one = {name: value[i].item() for name, value in amounts.items()}
        row = slice(i, i + 1)
        assert torch.equal(step(x[row], grad[row], x[row], **one)[0], whole[i])


def test_densities_outside_their_range_in_a_tensor_are_cut(backend):
    x, grad = torch.full((3, 4), 0.5), torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 3)
    nan = float("nan")
    moved = step(x, grad, x, step_size=0.5, density=torch.tensor([-1.0, 7.0, nan]))
    assert (moved != x).sum(1).tolist() == [1, 4, 4]


def test_nan_stays_visible(backend):
    nan = float("nan")
    x = torch.tensor([[0.5, 0.5, nan, 0.5]])
    x_adv = torch.tensor([[nan, 0.5, 0.5, 0.5]])
    moved = step(x_adv, torch.ones(1, 4), x, step_size=0.5, density=1.0)
    assert moved.isnan().tolist() == [[True, False, True, False]] and moved[0, 1] == 0.625


def test_empty_batches(backend):
    for shape in ((0, 3, 4, 4), (2, 0), (0,)):
        zeros = torch.zeros(shape)
        assert step(zeros, zeros, zeros).shape == shape

"""Strides, views and tensor types: the result never depends on how the values lie in memory."""

import pytest
import torch
from torch import Tensor

from roli_fast import ops
from roli_fast.ops import reference

OPTIONS = {"eps": 8 / 255, "step_size": 2 / 255}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def triple(shape, dtype=torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = torch.rand(shape, generator=generator)
    x_adv = x + 0.1 * torch.randn(shape, generator=generator)
    grad = torch.randn(shape, generator=generator)
    return [value.to(dtype) for value in (x_adv, grad, x)]


def channels_last(value: Tensor) -> Tensor:
    return value.clone(memory_format=torch.channels_last)


def transposed(value: Tensor) -> Tensor:
    return value.transpose(-1, -2).clone(memory_format=torch.contiguous_format).transpose(-1, -2)


def sliced(value: Tensor) -> Tensor:
    wide = torch.zeros(*value.shape[:-1], 2 * value.shape[-1] + 1, dtype=value.dtype)
    view = wide[..., 1::2]
    view.copy_(value)
    return view


def offset(value: Tensor) -> Tensor:
    """Contiguous, at an odd address for vector instructions."""
    return torch.cat([value.new_zeros(1), value.flatten()])[1:].view(value.shape)


LAYOUTS = {
    "contiguous": Tensor.clone,
    "channels_last": channels_last,
    "transposed": transposed,
    "sliced": sliced,
    "offset": offset,
}
SHAPES = [(2, 3, 8, 8), (3, 1, 8, 8), (1, 3, 5, 7), (4, 2, 1, 1), (2, 5, 1, 9)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("per_sample", [False, True], ids=["float", "tensor"])
def test_mixed_layouts_give_the_same_values(dtype, shape, per_sample):
    plain = triple(shape, dtype)
    options = dict(OPTIONS)
    if per_sample:
        options["eps"] = torch.linspace(0.01, 0.3, 2 * shape[0])[::2]
    expected = reference.linf_step(*plain, **options)
    for own in LAYOUTS.values():
        for other in LAYOUTS.values():
            x_adv, grad, x = own(plain[0]), other(plain[1]), own(plain[2])
            strides, version = x_adv.stride(), x_adv._version
            moved = ops.linf_step_(x_adv, grad, x, **options)
            assert moved is x_adv and x_adv.stride() == strides
            assert torch.equal(moved, expected)
            assert x_adv._version == version + 1


def test_what_lies_between_the_elements_is_not_touched():
    x_adv, grad, x = triple((2, 3, 4, 4))
    wide = torch.full((2, 3, 4, 8), 9.0)
    view = wide[..., ::2]
    view.copy_(x_adv)
    ops.linf_step_(view, grad, x, **OPTIONS)
    assert (wide[..., 1::2] == 9.0).all()
    assert torch.equal(view, reference.linf_step(x_adv, grad, x, **OPTIONS))


@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4), (2, 3, 4, 5, 6), (1, 1), (3, 65537)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_dimensions(shape, dtype):
    x_adv, grad, x = triple(shape, dtype)
    eps = torch.linspace(0.01, 0.3, shape[0])
    for options in (OPTIONS, OPTIONS | {"eps": eps}, OPTIONS | {"step_size": eps}):
        expected = reference.linf_step(x_adv, grad, x, **options)
        assert torch.equal(ops.linf_step_(x_adv.clone(), grad, x, **options), expected)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0), (0,), (2, 3, 0, 4)])
def test_empty_batches(shape):
    x_adv, grad, x = triple(shape)
    assert ops.linf_step_(x_adv, grad, x, **OPTIONS) is x_adv
    assert ops.linf_step_(x_adv, grad, x, eps=torch.zeros(shape[0]), step_size=0.1) is x_adv
    assert ops.linf_random_start(x, eps=0.1).shape == shape


def test_views_that_negate_are_read_right():
    x_adv, grad, x = triple((2, 3, 4, 4))
    negated = torch.complex(x, grad).conj().imag
    assert negated.is_neg()
    expected = reference.linf_step(x_adv, -grad, x, **OPTIONS)
    assert torch.equal(ops.linf_step_(x_adv.clone(), negated, x, **OPTIONS), expected)
    dense = torch._neg_view(grad)
    assert dense.is_neg() and dense.is_contiguous()
    assert torch.equal(ops.linf_step_(x_adv.clone(), dense, x, **OPTIONS), expected)
    assert torch.equal(
        ops.linf_step_(x_adv.clone(), -grad, torch._neg_view(-x), **OPTIONS), expected
    )
    for target in (torch.complex(x, -x_adv).conj().imag, torch._neg_view(-x_adv)):
        assert target.is_neg()
        assert torch.equal(ops.linf_step_(target, -grad, x, **OPTIONS), expected)


def test_zero_tensors_are_read_right():
    x_adv, _, x = triple((2, 3, 4, 4))
    zero = torch._efficientzerotensor((2, 3, 4, 4))
    expected = reference.linf_step(x_adv, torch.zeros_like(x), x, **OPTIONS)
    assert torch.equal(ops.linf_step_(x_adv.clone(), zero, x, **OPTIONS), expected)
    with pytest.raises(RuntimeError, match="immutable"):
        ops.linf_step_(zero, x_adv, x, **OPTIONS)


def test_parameters_and_other_tensor_types():
    class Image(Tensor):
        pass

    x_adv, grad, x = triple((2, 3, 4, 4))
    expected = reference.linf_step(x_adv, grad, x, **OPTIONS)
    parameter = torch.nn.Parameter(x_adv.clone())
    with torch.no_grad():
        moved = ops.linf_step_(parameter, grad, x, **OPTIONS)
    assert moved is parameter and torch.equal(moved, expected)
    image = x_adv.clone().as_subclass(Image)
    moved = ops.linf_step_(image, grad, x, **OPTIONS)
    assert moved is image and torch.equal(moved.as_subclass(Tensor), expected)


def test_meta_and_fake_tensors_give_shapes():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        for device in ("cpu", "cuda"):
            fake = [torch.empty(2, 3, 4, 4, device=device) for _ in range(3)]
            assert ops.linf_step_(*fake, **OPTIONS) is fake[0]
    meta = [torch.empty(2, 3, 4, 4, device="meta") for _ in range(3)]
    assert ops.linf_step_(*meta, **OPTIONS) is meta[0]


def test_inside_a_functional_gradient():
    x_adv, grad, x = triple((2, 3, 4, 4))
    expected = reference.linf_step(x_adv, grad, x, **OPTIONS)

    def loss(weight):
        moved = (x_adv + 0 * weight.detach()).clone()
        with torch.no_grad():
            ops.linf_step_(moved, grad, x, **OPTIONS)
        return (moved * weight).sum()

    assert torch.equal(torch.func.grad(loss)(torch.ones_like(x)), expected)


def test_autocast_changes_nothing():
    for dtype in DTYPES:
        x_adv, grad, x = triple((2, 3, 4, 4), dtype)
        expected = reference.linf_step(x_adv, grad, x, **OPTIONS)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for name in ("native", "reference"):
                with ops.use_backend(name):
                    moved = ops.linf_step_(x_adv.clone(), grad, x, **OPTIONS)
                assert moved.dtype == dtype and torch.equal(moved, expected)

"""Every op that updates a batch: layouts, views, tensor types, neighbours in the batch, zeros."""

import pytest
import torch
from cases import DTYPES, amounts, batch, near
from torch import Tensor

from roli_fast import ops

DENSE = torch.contiguous_format


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
    "channels_last": lambda v: v.clone(memory_format=torch.channels_last),
    "transposed": lambda v: v.transpose(-1, -2).clone(memory_format=DENSE).transpose(-1, -2),
    "sliced": sliced,
    "offset": offset,
}
SHAPES = [(2, 3, 8, 8), (3, 1, 8, 8), (1, 3, 5, 7), (4, 2, 1, 1), (2, 5, 1, 9)]


def copies(tensors: list[Tensor]) -> list[Tensor]:
    return [value.clone() for value in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("per_sample", [False, True], ids=["floats", "tensors"])
def test_mixed_layouts_give_the_same_values(op, dtype, shape, per_sample):
    plain = batch(op, shape, dtype)
    options = amounts(op, 0.6, shape[0] if per_sample else None)
    if per_sample:
        first = op.amounts[0]
        options[first] = options[first].repeat_interleave(2)[::2]  # an amount with strides
    expected = op.reference(*plain, **options)
    for own in LAYOUTS.values():
        for other in LAYOUTS.values():
            tensors = [own(plain[0]), *map(other, plain[1:-1]), own(plain[-1])]
            strides, version = tensors[0].stride(), tensors[0]._version
            moved = op.run(*tensors, **options)
            assert moved is tensors[0] and moved.stride() == strides
            assert moved._version == version + 1
            assert near(moved, expected)


def test_what_lies_between_the_elements_is_not_touched(op):
    plain, options = batch(op, (2, 3, 4, 4), torch.float32), amounts(op, 0.3)
    wide = torch.full((2, 3, 4, 8), 9.0)
    view = wide[..., ::2].copy_(plain[0])
    op.run(view, *plain[1:], **options)
    assert (wide[..., 1::2] == 9.0).all()
    assert near(view, op.reference(*plain, **options))


@pytest.mark.parametrize(
    "shape", [(5,), (2, 3), (2, 3, 4), (2, 3, 4, 5, 6), (1, 1), (3, 9001), (3, 65537)]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_dimensions(op, shape, dtype):
    if op.name.startswith("l1_") and shape[-1] > 9001:
        shape = (3, 9001)  # their references search, step by step
    tensors = batch(op, shape, dtype)
    numbers, each = amounts(op, 0.4), amounts(op, 0.4, shape[0])
    for options in (numbers, each, *(numbers | {name: each[name]} for name in op.amounts)):
        expected = op.reference(*tensors, **options)
        assert near(op.run(*copies(tensors), **options), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sample_does_not_depend_on_its_batch(backend, op, dtype):
    tensors, options = batch(op, (5, 3, 33, 15), dtype), amounts(op, 0.7, 5)
    whole = op.run(*copies(tensors), **options)
    order = torch.tensor([4, 2, 0, 1, 3])
    turned = {name: value[order] for name, value in options.items()}
    assert torch.equal(op.run(*[value[order] for value in tensors], **turned), whole[order])
    for i in (0, 2, 4):
        alone = [value[i : i + 1].clone() for value in tensors]
        numbers = {name: value[i].item() for name, value in options.items()}
        assert torch.equal(op.run(*alone, **numbers), whole[i : i + 1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_radius_of_zero_a_box_that_wins_and_zeros_without_a_sign(backend, op, dtype):
    tensors = batch(op, (3, 4, 5), dtype)
    if "eps" in op.amounts:
        options = amounts(op, 0.0) | ({"step_size": 0.3} if "step_size" in op.amounts else {})
        assert torch.equal(op.run(*tensors, **options), tensors[-1])
    x = torch.tensor([[-3.0, 3.0, 0.5]], dtype=dtype)
    tensors = [torch.ones_like(x) if name == "grad" else x.clone() for name in op.tensors]
    assert op.run(*tensors, **amounts(op, 0.25), bounds=(-1, 2))[0, :2].tolist() == [-1.0, 2.0]
    zeros = [torch.full((1, 6), -0.0, dtype=dtype) for _ in op.tensors]
    moved = op.run(*zeros, **amounts(op, 0.5), bounds=(-1.0, 1.0))
    assert moved.tolist() == [[0.0] * 6] and not torch.signbit(moved).any()


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0), (0,), (2, 3, 0, 4)])
def test_empty_batches(op, shape):
    tensors = batch(op, shape, torch.float32)
    assert op.run(*tensors, **amounts(op, 0.1)) is tensors[0]
    assert op.run(*tensors, **amounts(op, 0.1, shape[0])) is tensors[0]


def imaginary(value: Tensor) -> Tensor:
    """`value` as a negated view that is not dense."""
    return torch.complex(value, -value).conj().imag


@pytest.mark.parametrize("negated", [imaginary, lambda v: torch._neg_view(-v)], ids=["imag", "neg"])
def test_views_that_negate_are_read_right(op, negated):
    plain, options = batch(op, (2, 3, 4, 4), torch.float32), amounts(op, 0.3)
    expected = op.reference(*plain, **options)
    for index in range(len(plain)):
        tensors = copies(plain)
        tensors[index] = negated(tensors[index])
        assert tensors[index].is_neg()
        assert near(op.run(*tensors, **options), expected)


def test_zero_tensors_are_read_right(op):
    plain, options = batch(op, (2, 3, 4, 4), torch.float32), amounts(op, 0.3)
    zero = torch._efficientzerotensor((2, 3, 4, 4))
    if "grad" in op.tensors:
        dense = [*plain[:-2], torch.zeros_like(plain[-1]), plain[-1]]
        expected = op.reference(*dense, **options)
        moved = op.run(*copies(plain[:-2]), zero, plain[-1], **options)
        assert near(moved, expected)
    with pytest.raises(RuntimeError, match="immutable"):
        op.run(zero, *plain[1:], **options)


def test_parameters_and_other_tensor_types(op):
    class Image(Tensor):
        pass

    plain, options = batch(op, (2, 3, 4, 4), torch.float32), amounts(op, 0.3)
    expected = op.reference(*plain, **options)
    with torch.no_grad():
        parameter = torch.nn.Parameter(plain[0].clone())
        assert op.run(parameter, *plain[1:], **options) is parameter
    assert near(parameter.detach(), expected)
    for index in range(len(plain)):
        tensors = copies(plain)
        tensors[index] = tensors[index].as_subclass(Image)
        moved = op.run(*tensors, **options)
        assert moved is tensors[0] and near(moved.as_subclass(Tensor), expected)


def test_meta_and_fake_tensors_give_shapes(op):
    from torch._subclasses import FakeTensorMode

    plain, options = batch(op, (2, 3, 4, 4), torch.float32), amounts(op, 0.3)
    meta = [value.to("meta") for value in plain]
    assert op.run(*meta, **options) is meta[0]
    with FakeTensorMode():
        for device in ("cpu", "cuda"):
            fake = [torch.empty(2, 3, 4, 4, device=device) for _ in plain]
            assert op.run(*fake, **options) is fake[0]


def test_inside_a_functional_gradient(op):
    plain, options = batch(op, (2, 3, 4, 4), torch.float32), amounts(op, 0.3)
    expected = op.reference(*plain, **options)

    def loss(weight):
        moved = (plain[0] + 0 * weight.detach()).clone()
        with torch.no_grad():
            op.run(moved, *plain[1:], **options)
        return (moved * weight).sum()

    assert near(torch.func.grad(loss)(torch.ones_like(plain[0])), expected)


def test_autocast_changes_nothing(op):
    for dtype in DTYPES:
        plain, options = batch(op, (2, 3, 4, 4), dtype), amounts(op, 0.3)
        for name in ("native", "reference"):
            with ops.use_backend(name):
                expected = op.run(*copies(plain), **options)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    moved = op.run(*copies(plain), **options)
            assert moved.dtype == dtype and torch.equal(moved, expected)
            assert near(moved, op.reference(*plain, **options))

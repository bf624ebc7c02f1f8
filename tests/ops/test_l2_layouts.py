"""L2 and APGD steps: strides, views, tensor types, shapes and autocast change nothing."""

import pytest
import torch
from l2_cases import DTYPES, OPS, amounts, batch, same_numbers
from tolerances import OTHER_SUMS
from torch import Tensor

from roli_fast import ops

DENSE = torch.contiguous_format
LAYOUTS = {
    "contiguous": Tensor.clone,
    "channels_last": lambda v: v.clone(memory_format=torch.channels_last),
    "transposed": lambda v: v.transpose(-1, -2).clone(memory_format=DENSE).transpose(-1, -2),
    "offset": lambda v: torch.cat([v.new_zeros(1), v.flatten()])[1:].view(v.shape),
}
SHAPES = [(2, 3, 8, 8), (3, 1, 8, 8), (1, 3, 5, 7), (4, 2, 1, 1)]


@pytest.fixture(params=OPS)
def op(request):
    return OPS[request.param]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("per_sample", [False, True], ids=["floats", "tensors"])
def test_mixed_layouts_give_the_same_values(op, dtype, per_sample):
    for shape in SHAPES:
        plain = batch(op, shape, dtype)
        options = amounts(op, 0.6, shape[0] if per_sample else None)
        expected = op.reference(*plain, **options)
        for own in LAYOUTS.values():
            for other in LAYOUTS.values():
                tensors = [own(plain[0]), *map(other, plain[1:-1]), own(plain[-1])]
                strides, version = tensors[0].stride(), tensors[0]._version
                moved = op.run(*tensors, **options)
                assert moved is tensors[0] and moved.stride() == strides
                assert moved._version == version + 1
                assert same_numbers(moved, expected, OTHER_SUMS)


@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4), (2, 3, 4, 5, 6), (1, 1), (3, 9001)])
def test_any_number_of_dimensions(op, shape):
    for dtype in DTYPES:
        tensors, options = batch(op, shape, dtype), amounts(op, 0.4, shape[0])
        expected = op.reference(*tensors, **options)
        assert same_numbers(op.run(*tensors, **options), expected, OTHER_SUMS)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0), (0,), (2, 3, 0, 4)])
def test_empty_batches(op, shape):
    tensors = batch(op, shape, torch.float32)
    assert op.run(*tensors, **amounts(op, 0.1)) is tensors[0]
    assert op.run(*tensors, **amounts(op, 0.1, shape[0])) is tensors[0]


def test_views_that_negate_and_zero_tensors_are_read_right(op):
    plain, options = batch(op, (2, 3, 4, 4), torch.float32), amounts(op, 0.3)
    expected = op.reference(*plain, **options)
    for index in range(len(plain)):
        tensors = [value.clone() for value in plain]
        tensors[index] = torch._neg_view(-tensors[index])
        assert same_numbers(op.run(*tensors, **options), expected, OTHER_SUMS)
    zero = torch._efficientzerotensor((2, 3, 4, 4))
    dense = [*plain[:-2], torch.zeros_like(zero), plain[-1]]
    expected = op.reference(*dense, **options)
    if len(plain) > 2:
        assert same_numbers(op.run(*plain[:-2], zero, plain[-1], **options), expected)


def test_parameters_subclasses_meta_and_fake_tensors(op):
    class Image(Tensor):
        pass

    plain, options = batch(op, (2, 3, 4, 4), torch.float32), amounts(op, 0.3)
    expected = op.reference(*plain, **options)
    with torch.no_grad():
        parameter = torch.nn.Parameter(plain[0].clone())
        assert op.run(parameter, *plain[1:], **options) is parameter
        assert same_numbers(parameter.detach(), expected, OTHER_SUMS)
        image = plain[0].clone().as_subclass(Image)
        assert op.run(image, *plain[1:], **options) is image
        assert same_numbers(image.as_subclass(Tensor), expected, OTHER_SUMS)
    meta = [value.to("meta") for value in plain]
    assert op.run(*meta, **options) is meta[0]
    with torch._subclasses.FakeTensorMode():
        for device in ("cpu", "cuda"):
            fake = [torch.empty(2, 3, 4, 4, device=device) for _ in plain]
            assert op.run(*fake, **options) is fake[0]


def test_autocast_changes_nothing(op):
    for dtype in DTYPES:
        plain, options = batch(op, (2, 3, 4, 4), dtype), amounts(op, 0.3)
        for name in ("native", "reference"):
            with ops.use_backend(name):
                expected = op.run(*[value.clone() for value in plain], **options)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    moved = op.run(*[value.clone() for value in plain], **options)
            assert moved.dtype == dtype and torch.equal(moved, expected)

"""What holds for every L2 and APGD step, whatever the numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from l2_cases import DTYPES, OPS, amounts, batch, distance, radius

from roli_fast import ops
from roli_fast.ops import native


@st.composite
def cases(draw):
    """A call with pixels, or with numbers of any size."""
    op = OPS[draw(st.sampled_from(sorted(OPS)))]
    dtype = draw(st.sampled_from(DTYPES))
    samples, length = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    tensors = batch(op, (samples, length), dtype, draw(st.integers(0, 2**20)))
    bounds = draw(st.sampled_from([(0.0, 1.0), (-0.3, 0.7), (-2.0, 1.7)]))
    low, high = bounds
    tensors[-1] = (low + (high - low) * tensors[-1].double()).to(dtype)
    tensors[-1] = tensors[-1].clamp(*ops_box(bounds, dtype))
    spread = draw(st.sampled_from([0.0, 1e-4, 0.1, 3.0, 1e4]))
    for index, name in enumerate(op.tensors[:-1]):
        if name == "grad":
            tensors[index] = tensors[index] * draw(st.sampled_from([1e-7, 1.0, 1e4]))
        else:
            noise = torch.randn(tensors[-1].shape, generator=torch.Generator().manual_seed(index))
            tensors[index] = (tensors[-1].double() + spread * noise).clamp(-6e4, 6e4).to(dtype)
    options = amounts(op, draw(st.sampled_from([1e-30, 1e-6, 0.01, 0.5, 4.0]) | st.floats(0, 9)))
    if "step_size" in options:
        options["step_size"] = draw(st.sampled_from([0.0, 1e-30, 1e-3, 0.3, 2.0, 1e6]))
    if "momentum" in options:
        options["momentum"] = draw(st.sampled_from([0.0, 0.75, 1.0]))
    return op, tensors, options | {"bounds": bounds}


def ops_box(bounds, dtype):
    from references import reference

    return reference.box_limits(*bounds, dtype)


@given(case=cases())
@settings(max_examples=500, deadline=None)
def test_results_lie_in_ball_and_box_in_fp64(case):
    op, tensors, options = case
    x = tensors[-1]
    for name in native.BACKENDS:
        with ops.use_backend(name):
            moved = op.run(*[value.clone() for value in tensors], **options)
        assert (distance(op, moved, x) <= radius(options["eps"], x)).all()
        low, high = torch.tensor(options["bounds"], dtype=moved.dtype)  # as torch.clamp takes them
        assert ((moved >= low) & (moved <= high)).all()


@given(seed=st.integers(0, 2**20), eps=st.floats(0.01, 3.0), dtype=st.sampled_from(DTYPES))
@settings(max_examples=60, deadline=None)
def test_a_second_projection_changes_nothing(seed, eps, dtype):
    x_adv, x = batch(OPS["l2_project_"], (3, 40), dtype, seed, spread=0.4)
    once = ops.l2_project_(x_adv, x, eps=eps)
    assert torch.equal(ops.l2_project_(once.clone(), x, eps=eps), once)


@given(seed=st.integers(0, 2**20), eps=st.floats(0.05, 2.0))
@settings(max_examples=60, deadline=None)
def test_no_point_of_the_ball_is_nearer(seed, eps):
    """Without a box the radial map is the Euclidean projection."""
    generator = torch.Generator().manual_seed(seed)
    x, x_adv = torch.rand(2, 20, generator=generator), torch.randn(2, 20, generator=generator)
    nearest = ops.l2_project_(x_adv.clone(), x, eps=eps, bounds=(-99.0, 99.0)).double()
    away = (nearest - x_adv).norm(dim=1)
    delta = torch.randn(200, 2, 20, generator=generator).double()
    scale = torch.rand(200, 2, 1, generator=generator) * eps / delta.norm(dim=2, keepdim=True)
    around = nearest + 0.01 * eps * delta
    around = x + (around - x) * (eps / (around - x).norm(dim=2, keepdim=True)).clamp(max=1)
    for point in (x + delta * scale, around):
        assert (away <= (point - x_adv).norm(dim=2) + 2e-6).all()


@given(seed=st.integers(0, 2**20), eps=st.floats(0.05, 2.0))
@settings(max_examples=60, deadline=None)
def test_the_box_leads_no_farther_from_x(seed, eps):
    x_adv, x = batch(OPS["l2_project_"], (3, 30), torch.float32, seed, spread=0.5)
    x_adv = x_adv * 3 - 1
    free = ops.l2_project_(x_adv.clone(), x, eps=eps, bounds=(-99.0, 99.0))
    boxed = ops.l2_project_(x_adv, x, eps=eps)
    assert torch.equal(boxed, free.clamp(0, 1))
    assert ((boxed - x).abs() <= (free - x).abs()).all()


@given(seed=st.integers(0, 2**20), size=st.floats(0.01, 1.0))
@settings(max_examples=60, deadline=None)
def test_a_step_is_the_steepest_ascent_of_a_linear_loss(seed, size):
    generator = torch.Generator().manual_seed(seed)
    x, grad = torch.zeros(2, 25), torch.randn(2, 25, generator=generator)
    options = {"eps": 2.0, "step_size": size, "bounds": (-5.0, 5.0)}
    moved = ops.l2_step_(x.clone(), grad, x, **options)
    assert torch.allclose(moved.norm(dim=1), torch.full((2,), size), rtol=1e-5)
    others = torch.randn(100, 2, 25, generator=generator)
    others = size * others / others.norm(dim=2, keepdim=True)
    assert ((moved * grad).sum(1) >= (others * grad).sum(2) - 1e-5).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_a_sample_does_not_depend_on_its_batch(name, dtype):
    op = OPS[name]
    tensors = batch(op, (9, 3, 33, 45), dtype)
    options = amounts(op, 0.7, 9)
    whole = op.run(*[value.clone() for value in tensors], **options)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(5))
    shuffled = op.run(*[v[order] for v in tensors], **{k: v[order] for k, v in options.items()})
    assert torch.equal(shuffled, whole[order])
    for i in (0, 4, 8):
        alone = [value[i : i + 1].clone() for value in tensors]
        one = op.run(*alone, **{key: value[i : i + 1] for key, value in options.items()})
        assert torch.equal(one, whole[i : i + 1])

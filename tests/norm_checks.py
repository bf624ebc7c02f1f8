"""What every norm must do, measured in fp64: `CHECKS`, one function each, of a norm alone."""

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_attacks import generator
from tiny_models import images
from torch import Tensor

from roli_fast.norms import Norm

SHAPES = [(3, 7), (2, 3, 5, 4), (1, 1, 1, 1), (0, 3, 4, 4), (5, 2)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
BOX = (0.0, 1.0)


def inside(norm: Norm, moved: Tensor, x: Tensor, eps: float, bounds: tuple[float, float]) -> bool:
    """The ball in fp64; eps means its fp32 value for tensors below fp64, bounds their nearest
    numbers in the dtype, as torch.clamp takes them."""
    radius = torch.tensor(eps, dtype=torch.float32 if x.dtype != torch.float64 else x.dtype)
    near = norm.distance(moved, x) <= radius.double()
    low, high = torch.tensor(bounds, dtype=x.dtype)
    return bool(near.all()) and bool(((moved >= low) & (moved <= high)).all())


def starts_steps_and_projections_stay_in_ball_and_box(norm: Norm) -> None:
    """In every dtype and shape, at small and large radii; a projection of what is inside is it."""
    for dtype in DTYPES:
        for shape in SHAPES:
            for eps in (1 / 255, 8 / 255, 0.3, 2.0):
                x = images(*shape).to(dtype)
                kept = x.clone()
                for start in (norm.random_start, norm.search_start):
                    moved = start(x, eps=eps, bounds=BOX, generator=generator())
                    assert moved.shape == x.shape and moved.dtype == dtype
                    assert inside(norm, moved, x, eps, BOX)
                for seed in range(3):
                    grad = torch.randn(*shape, generator=generator(seed)).to(dtype)
                    norm.step_(moved, grad, x, eps=eps, step_size=0.7 * eps, bounds=BOX)
                    assert inside(norm, moved, x, eps, BOX)
                assert norm.project_(moved, x, eps=eps / 3, bounds=BOX) is moved
                assert inside(norm, moved, x, eps / 3, BOX)
                assert torch.equal(x, kept)


def any_numbers_stay_in_ball_and_box(norm: Norm) -> None:
    """Whatever the radius, the step and the bounds."""

    @settings(max_examples=40, deadline=None)
    @given(
        seed=st.integers(0, 2**31),
        eps=st.floats(1e-6, 4.0),
        step=st.floats(1e-6, 8.0),
        low=st.floats(-3.0, 0.4),
        width=st.floats(0.1, 5.0),
    )
    def run(seed: int, eps: float, step: float, low: float, width: float) -> None:
        bounds = (low, low + width)
        x = (low + width * (0.01 + 0.98 * images(2, 3, 3, seed=seed))).float()
        grad = torch.randn(x.shape, generator=generator(seed))
        moved = norm.random_start(x, eps=eps, bounds=bounds, generator=generator(seed))
        assert inside(norm, moved, x, eps, bounds)
        norm.step_(moved, grad, x, eps=eps, step_size=step, bounds=bounds)
        assert inside(norm, moved, x, eps, bounds)

    run()


def a_step_works_in_place_and_climbs(norm: Norm) -> None:
    """By its length, and not by more than the dual norm allows; nothing moves without a change."""
    x = images(4, 3, 6, 5) * 0.5 + 0.25
    moved, grad = x.clone(), torch.randn(4, 3, 6, 5, generator=generator())
    result = norm.step_(moved, grad, x, eps=0.1, step_size=0.02, bounds=BOX)
    assert result is moved
    gain = ((moved - x) * grad).flatten(1).sum(1)
    assert (gain > 0).all() and (gain <= 0.02 * norm.dual(grad) * (1 + 1e-4)).all()
    assert torch.allclose(norm.distance(moved, x).float(), torch.full((4,), 0.02), rtol=1e-3)
    kept = moved.clone()
    assert torch.equal(norm.project_(moved, x, eps=0.1, bounds=BOX), kept)


def distance_is_a_distance_for_each_sample(norm: Norm) -> None:
    """Symmetric, 0 for equals alone, with the triangle's inequality, at most `largest`."""
    a, b, c = (images(5, 3, 2, 2, seed=seed) for seed in range(3))
    assert norm.distance(a, b).shape == (5,) and norm.distance(a, b).dtype == torch.float64
    assert torch.equal(norm.distance(a, b), norm.distance(b, a))
    assert (norm.distance(a, c) <= norm.distance(a, b) + norm.distance(b, c) + 1e-12).all()
    assert torch.equal(norm.distance(a, a), torch.zeros(5).double())
    b[2] = a[2]
    assert (norm.distance(a, b) > 0).tolist() == [True, True, False, True, True]
    far = norm.random_start(a, eps=50.0, bounds=BOX, generator=generator())
    assert (norm.distance(far, a) <= norm.largest(12)).all()


def the_start_depends_on_the_generator_alone(norm: Norm) -> None:
    """On its next number; without one on torch's global state."""
    x, options = images(3, 3, 4, 4), {"eps": 0.1, "bounds": BOX}
    before = torch.get_rng_state()
    first = norm.random_start(x, generator=generator(1), **options)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(norm.random_start(x, generator=generator(1), **options), first)
    assert not torch.equal(norm.random_start(x, generator=generator(2), **options), first)
    assert (norm.distance(first, x) > 0).all()
    with torch.random.fork_rng():
        starts = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            starts.append(norm.random_start(x, generator=None, **options))
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


def the_start_of_a_sample_follows_its_id(norm: Norm) -> None:
    """Whatever the batch around it."""
    x, ids, turn = images(4, 3, 4, 4), torch.tensor([7, 2**40, 0, 3]), torch.tensor([2, 3, 0, 1])
    options: Any = {"eps": 0.5, "bounds": BOX}
    for start in (norm.random_start, norm.search_start):
        whole = start(x, generator=generator(), sample_ids=ids, **options)
        turned = start(x[turn], generator=generator(), sample_ids=ids[turn], **options)
        assert torch.equal(turned, whole[turn])
        alone = start(x[:1], generator=generator(), sample_ids=ids[:1], **options)
        assert torch.equal(alone, whole[:1])


CHECKS: tuple[Callable[[Norm], None], ...] = (
    starts_steps_and_projections_stay_in_ball_and_box,
    any_numbers_stay_in_ball_and_box,
    a_step_works_in_place_and_climbs,
    distance_is_a_distance_for_each_sample,
    the_start_depends_on_the_generator_alone,
    the_start_of_a_sample_follows_its_id,
)

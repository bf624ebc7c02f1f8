"""linf_random_start: inside ball and box, uniform, reproducible, and with no effect elsewhere."""

import pytest
import torch

from roli_fast import ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
EPS = 8 / 255


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inside_ball_and_box_in_fp64(dtype):
    x = torch.rand(4, 3, 65, 65, generator=seeded(1)).to(dtype)
    start = ops.linf_random_start(x, eps=EPS, bounds=(0.1, 0.9), generator=seeded())
    radius = torch.tensor(EPS, dtype=torch.float64 if dtype is torch.float64 else torch.float32)
    inside = (x >= 0.15) & (x <= 0.85)
    assert ((start.double() - x.double()).abs()[inside] <= radius.double()).all()
    assert (start.double() >= 0.1).all() and (start.double() <= 0.9).all()
    assert start.dtype == dtype and start.data_ptr() != x.data_ptr()


def test_uniform_in_the_ball():
    x = torch.full((2, 100_000), 0.5)
    eps = torch.tensor([0.1, 0.4])
    start = ops.linf_random_start(x, eps=eps, generator=seeded())
    place = ((start - x) / eps[:, None] + 1) / 2  # uniform in [0, 1]
    counts = torch.histc(place, bins=20, min=0, max=1)
    expected = place.numel() / 20
    chi_squared = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_squared < 43.8  # 19 degrees of freedom: exceeded by chance once in 1000 seeds


def test_a_fixed_seed_gives_fixed_draws():
    x = torch.full((1, 4), 0.5)
    start = ops.linf_random_start(x, eps=0.25, generator=seeded(0))
    uniform = torch.rand(1, 4, generator=seeded(0))
    assert torch.allclose(start, 0.25 + 0.5 * uniform, atol=1e-7)
    assert not torch.equal(start, ops.linf_random_start(x, eps=0.25, generator=seeded(1)))


def test_layout_is_kept_and_does_not_change_the_draws():
    x = torch.rand(2, 3, 8, 8, generator=seeded(2))
    plain = ops.linf_random_start(x, eps=EPS, generator=seeded())
    other = x.contiguous(memory_format=torch.channels_last)
    start = ops.linf_random_start(other, eps=EPS, generator=seeded())
    assert start.stride() == other.stride()
    assert torch.equal(start, plain)


def test_the_global_generator_is_used_only_without_one():
    x = torch.rand(2, 3)
    before = torch.get_rng_state()
    ops.linf_random_start(x, eps=EPS, generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    first = ops.linf_random_start(x, eps=EPS)
    torch.manual_seed(5)
    assert torch.equal(ops.linf_random_start(x, eps=EPS), first)
    torch.set_rng_state(before)


def test_autograd_does_not_follow():
    x = torch.rand(2, 3, requires_grad=True)
    eps = torch.full((2,), 0.1, requires_grad=True)
    assert not ops.linf_random_start(x, eps=eps, generator=seeded()).requires_grad


def test_eps_zero_gives_x_back():
    x = torch.rand(3, 5)
    assert torch.equal(ops.linf_random_start(x, eps=0.0), x)

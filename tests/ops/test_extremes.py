"""Numbers at the ends of a dtype's range, and tensors whose memory has gone."""

import pytest
import torch
from cases import DTYPES, UPDATES, amounts, batch
from torch import Tensor

from roli_fast import ops
from roli_fast.errors import ArgumentError
from roli_fast.threat import check_images

HALF = (torch.bfloat16, torch.float16)
LENGTHS = {
    "linf": lambda d: d.amax(1),
    "l2": lambda d: d.square().sum(1).sqrt(),
    "l1": lambda d: d.sum(1),
}


pytestmark = pytest.mark.usefixtures("backend")


def length(norm: str, moved: Tensor, x: Tensor) -> Tensor:
    """Of each sample's change, in fp64."""
    return LENGTHS[norm]((moved.double() - x.double()).abs().flatten(1))


def moves(x: Tensor, x_adv: Tensor, grad: Tensor, eps: float, step: float, bounds: tuple) -> dict:
    """Every op that has to stay in a ball: (its name, the ball's norm) -> result."""
    options = {"eps": eps, "bounds": bounds}
    sized, mixed = options | {"step_size": step}, options | {"step_size": step, "momentum": 0.75}
    found = {}
    for norm in LENGTHS:
        start = getattr(ops, f"{norm}_random_start")
        found["start", norm] = start(x, generator=torch.Generator().manual_seed(0), **options)
        if norm != "linf":
            found["project", norm] = getattr(ops, f"{norm}_project_")(x_adv.clone(), x, **options)
        sparse = {"density": 0.5} if norm == "l1" else {}
        run = getattr(ops, f"{norm}_step_")
        found["step", norm] = run(x_adv.clone(), grad, x, **sized, **sparse)
        if norm != "l1":
            run = getattr(ops, f"apgd_{norm}_step_")
            found["apgd", norm] = run(x_adv, x_adv.flip(0).clone(), grad, x, **mixed)
    return found


def check(found: dict, x: Tensor, eps: float, bounds: tuple) -> None:
    radius = torch.tensor(eps, dtype=torch.float64 if x.dtype is torch.float64 else torch.float32)
    for (name, norm), moved in found.items():
        assert (length(norm, moved, x) <= radius.double() * (1 + 1e-14)).all(), (name, norm)
        assert ((moved >= bounds[0]) & (moved <= bounds[1])).all(), (name, norm)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("eps", [0.0, 1e-320, 1e-45, 1e-42, 1e-40, 1e-38, 1e-33, 1e-30, 1e-20])
def test_a_tiny_ball_is_not_left(dtype, eps):
    """At 0, where the spacing of numbers is finer than such an eps."""
    generator = torch.Generator().manual_seed(1)
    x = torch.zeros(2, 3000, dtype=dtype)
    x_adv = (eps * torch.rand(2, 3000, generator=generator, dtype=torch.float64)).to(dtype)
    grad = torch.randn(2, 3000, generator=generator).to(dtype)
    check(moves(x, x_adv, grad, eps, eps / 4, (0.0, 1.0)), x, eps, (0.0, 1.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("eps", "step"), [(0.5, 1e30), (1e30, 1e29), (1e30, 1e-30), (1e-3, 1e30)])
@pytest.mark.parametrize("scale", [1e-40, 1.0, 1e30])
def test_huge_numbers_stay_numbers(dtype, eps, step, scale):
    bounds = (-1e30, 1e30) if dtype not in HALF[1:] else (-6e4, 6e4)
    generator = torch.Generator().manual_seed(1)
    x, x_adv, grad = torch.randn(3, 4, 50, generator=generator, dtype=torch.float64)
    x, x_adv = ((value * bounds[1]).to(dtype).clamp(*bounds) for value in (x, x_adv))
    check(moves(x, x_adv, (grad * scale).to(dtype), eps, step, bounds), x, eps, bounds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_iterates_far_beyond_the_box_end_in_the_ball(dtype):
    """Near 3e38 the factor of the way back was a subnormal number, and differences infinite."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(20, 6, generator=generator).to(dtype)
    x_adv = (torch.randn(20, 6, generator=generator).sign() * 3e38).to(dtype)
    grad = torch.randn(20, 6, generator=generator).to(dtype)
    check(moves(x, x_adv, grad, 0.5, 0.1, (0.0, 1.0)), x, 0.5, (0.0, 1.0))


def test_a_step_that_fp32_does_not_hold_is_as_long_as_may_be():
    """A gradient of subnormal numbers made the factor of a long step infinite, and 0 * inf NaN."""
    x = torch.rand(2, 5)
    grad = torch.tensor([[0.0, 1e-42, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, -1e-42, 0.0]])
    step = torch.full((2,), 1e38)
    moved = ops.l2_step_(x.clone(), grad, x, eps=0.25, step_size=step, bounds=(-9, 9))
    expected = x + 0.25 * grad.sign()
    torch.testing.assert_close(moved, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("bounds", [(-3e38, 3e38), (0.0, 1e39), (-1e300, 1e300)])
def test_bounds_in_which_distances_overflow_are_refused(bounds):
    x = torch.rand(2, 5)
    for norm in LENGTHS:
        with pytest.raises(ArgumentError, match=r"^`bounds`: .* of at most 2\*\*100"):
            getattr(ops, f"{norm}_random_start")(x, eps=0.1, bounds=bounds)
    with pytest.raises(ArgumentError, match=r"^`eps`: expected a number >= 0"):
        ops.linf_random_start(x, eps=1e38)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bounds", [(0.2, 0.7), (0.1, 0.9), (-1 / 3, 1 / 3)])
def test_an_image_that_is_accepted_lies_in_the_box(dtype, bounds):
    """One at the bounds' own numbers of the dtype: it was moved out of the ball, into the box."""
    x = torch.randn(2, 500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = (9 * x).to(dtype).clamp(*bounds)
    check_images(x, bounds)
    grad = torch.randn(2, 500, generator=torch.Generator().manual_seed(2)).to(dtype)
    check(moves(x, x.clone(), grad, 1e-3, 1e-3, bounds), x, 1e-3, bounds)
    for norm in LENGTHS:
        step = getattr(ops, f"fab_{norm}_step_")
        moved = step(x.clone(), grad, x, value=1.0, alpha_max=0.1, eta=1.05, bounds=bounds)
        check_images(moved, bounds)


def freed(value: Tensor, size: int = 0) -> Tensor:
    """The tensor, behind the begin of its memory where it is, which shrinks."""
    memory = value.clone() if value._base is None else value._base.clone()
    value = memory.as_strided(value.shape, value.stride(), value.storage_offset())
    memory.untyped_storage().resize_(size)
    return value


@pytest.mark.parametrize("size", [0, 8])
@pytest.mark.parametrize("op", UPDATES.values(), ids=UPDATES)
def test_memory_that_has_gone_is_refused_by_name(op, size):
    """Each argument in turn; a kernel, and torch as well, would read what is not there."""
    tensors = dict(zip(op.tensors, batch(op, (2, 3, 4, 4), torch.float32), strict=True))
    options = amounts(op, 0.3)
    for name, value in tensors.items():
        with pytest.raises(ArgumentError, match=f"^`{name}`: .* has its memory"):
            op.run(*(tensors | {name: freed(value, size)}).values(), **options)
        with pytest.raises(ArgumentError, match=f"^`{name}`: .* has its memory"):
            late = freed(torch.cat([value, value])[1:3], size)
            op.run(*(tensors | {name: late}).values(), **options)
    for name in set(options) - {"bounds"}:
        gone = freed(torch.full((2,), 0.1), size // 2)
        with pytest.raises(ArgumentError, match=f"^`{name}`: .* has its memory"):
            op.run(*tensors.values(), **options | {name: gone})


def test_memory_that_has_gone_is_refused_by_the_others():
    x = torch.rand(2, 4)
    for norm in LENGTHS:
        start = getattr(ops, f"{norm}_random_start")
        ids = {"sample_ids": torch.arange(2)}
        calls = [({"x": freed(x), "eps": 0.1}, "x"), ({"x": x, "eps": freed(x[:, 0])}, "eps")]
        calls += [({"x": x, "eps": 0.1, "sample_ids": freed(ids["sample_ids"])}, "sample_ids")]
        for arguments, name in calls:
            with pytest.raises(ArgumentError, match=f"^`{name}`: .* has its memory"):
                start(arguments.pop("x"), **arguments)
    best = {name: x.clone() for name in ("best_x", "best_grad", "best_loss", "x_adv", "grad")}
    best |= {"best_loss": x[:, 0].clone(), "loss": x[:, 0].clone()}
    for name in best:
        with pytest.raises(ArgumentError, match=f"^`{name}`: .* has its memory"):
            ops.select_best_(**best | {name: freed(best[name])})
    layer = {"x": x, "weight": torch.rand(3, 4), "bias": torch.rand(3)}
    layer |= {"a": torch.rand(2, 4), "b": torch.rand(3, 2), "seed": torch.tensor([1])}
    for name in layer:
        with pytest.raises(ArgumentError, match=f"^`{name}`: .* has its memory"):
            ops.lora_linear(**layer | {name: freed(layer[name])}, scale=1.0, dropout=0.5)
    merge = {
        "merged": torch.rand(3, 4),
        "weights": layer["weight"],
        "a": layer["a"],
        "b": layer["b"],
    }
    for name in merge:
        lists = {key: [freed(v) if key == name else v] for key, v in merge.items()}
        with pytest.raises(ArgumentError, match=f"^`{name}`: .* has its memory"):
            ops.lora_merge_(**lists, scales=[1.0])

"""bf16 by AVX-512: any tame number against ball, box and zero; wild ones fall back."""

import pytest
import torch
from references import reference

from roli_fast import ops

pytestmark = pytest.mark.usefixtures("kernels")
WIDTH = 1111  # tails of the blocks of 32
EPS = [0.0, 1e-40, 2.0**-9, 8 / 255, 0.5, 3e4]
STEP = [0.0, 2.0**-12, 2 / 255, 2.0**-9, 1e-39, 7e3]
MOMENTUM = [1.0, 0.75, 0.0, 1.0, 0.3, 0.75]


def tame(seed: int, largest: float) -> torch.Tensor:
    """Any bf16 bits of a magnitude below `largest`: both zeros and subnormals are among them."""
    generator = torch.Generator().manual_seed(seed)
    top = int(torch.tensor(largest, dtype=torch.bfloat16).view(torch.int16))
    bits = torch.randint(0, top, (len(EPS), WIDTH), generator=generator, dtype=torch.int16)
    bits[:, :64] %= 3  # zeros and the smallest numbers
    sign = torch.randint(0, 2, bits.shape, generator=generator, dtype=torch.int16) * -0x8000
    return (bits | sign.to(torch.int16)).view(torch.bfloat16)


def case(seed: int) -> tuple[torch.Tensor, ...]:
    """x_adv around x at all distances, x_prev, a gradient with zeros, infinities and NaN, and x."""
    x, x_prev = tame(seed, 4.0), tame(seed + 1, 4.0)
    x_adv = torch.where(tame(seed + 2, 4.0) > 0, (x + tame(seed + 3, 0.5)), tame(seed + 4, 1e29))
    grad = tame(seed + 5, float("inf"))
    grad[:, 5::7], grad[:, 6::11] = float("inf"), float("nan")
    return x_adv, x_prev, grad, x


def check(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """The same bits; one NaN is as good as another."""
    assert torch.equal(actual.isnan(), expected.isnan())
    same = actual.view(torch.int16) == expected.view(torch.int16)
    assert (same | expected.isnan()).all()


def update(name: str, inputs: tuple[torch.Tensor, ...], bounds: tuple[float, float]) -> None:
    """Run one op and its reference on the same input."""
    x_adv, x_prev, grad, x = inputs
    amounts = {"eps": torch.tensor(EPS), "step_size": torch.tensor(STEP), "bounds": bounds}
    if name == "linf_step_":
        expected = reference.linf_step(x_adv, grad, x, **amounts)
        check(ops.linf_step_(x_adv.clone(), grad, x, **amounts), expected)
    else:
        amounts["momentum"] = torch.tensor(MOMENTUM)
        expected = reference.apgd_linf_step(x_adv, x_prev, grad, x, **amounts)
        check(ops.apgd_linf_step_(x_adv, x_prev.clone(), grad, x, **amounts), expected)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-2.0, 2.5), (-1.0, 0.0), (0.25, 0.375)])
@pytest.mark.parametrize("name", ["linf_step_", "apgd_linf_step_"])
def test_tame_numbers(name, bounds):
    for seed in range(0, 60, 6):
        update(name, case(seed), bounds)


@pytest.mark.parametrize("wild", [float("nan"), float("inf"), -float("inf"), 3e38, 2e30])
@pytest.mark.parametrize("tensor", [0, 1, 3])
@pytest.mark.parametrize("name", ["linf_step_", "apgd_linf_step_"])
def test_a_wild_number_sends_its_block_to_the_scalar_rule(name, tensor, wild):
    inputs = case(0)
    inputs[tensor][:, 40::300] = wild
    update(name, inputs, (0.0, 1.0))


@pytest.mark.parametrize("amount", [float("inf"), float("nan"), 1e31])
@pytest.mark.parametrize("name", ["eps", "step_size"])
def test_wild_amounts(name, amount):
    x_adv, _, grad, x = case(6)
    amounts = {"eps": torch.tensor(EPS), "step_size": torch.tensor(STEP)}
    amounts[name] = torch.full((len(EPS),), amount)  # a tensor's values are not checked
    expected = reference.linf_step(x_adv, grad, x, **amounts)
    check(ops.linf_step_(x_adv.clone(), grad, x, **amounts), expected)

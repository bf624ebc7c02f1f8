"""More than 2^31 elements, on the CPU: bf16 tensors of 4.3 GB each, three at a time.

Everything is checked around the first element, around number 2^31 and at the end, against the
reference on these samples alone. A sum over one sample of this length would take the reference's
memory ten times over: there the input repeats itself, and so has the result.
"""

from pathlib import Path

import pytest
import torch
from cases import UPDATES, near
from references import reference
from torch import Tensor

from roli_fast import ops

LENGTH = 1024
SAMPLES = 2**21 + 2
PERIOD = 2**15  # samples, after which the numbers repeat
NEEDED = 14e9  # bytes: three tensors and what is made for a part of one
PARTS = (slice(0, 2), slice(2**21 - 1, 2**21 + 2))
AMOUNTS = {"eps": 0.3, "step_size": 0.1, "momentum": 0.75, "density": 0.1}
AMOUNTS |= {"value": -9.0, "alpha_max": 0.1, "eta": 1.05}

pytestmark = pytest.mark.slow


def memory_left() -> float:
    """Bytes that are free; infinite where Linux does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return min(int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)
    except OSError:
        return float("inf")


def block(seed: int, scale: float, shift: float) -> Tensor:
    """The numbers that a large tensor repeats."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(PERIOD, LENGTH, generator=generator) * scale + shift).bfloat16()


def filled(seed: int, scale: float, shift: float, out: Tensor | None = None) -> Tensor:
    """A large tensor (SAMPLES, LENGTH) that repeats every PERIOD samples."""
    numbers = block(seed, scale, shift)
    out = torch.empty(SAMPLES, LENGTH, dtype=torch.bfloat16) if out is None else out
    for begin in range(0, SAMPLES, PERIOD):
        part = out[begin : begin + PERIOD]
        part.copy_(numbers[: len(part)])
    return out


@pytest.fixture(scope="module")
def large():
    """x, grad and a tensor to write into."""
    if memory_left() < NEEDED:
        pytest.skip(f"needs {NEEDED / 1e9:.0f} GB, {memory_left() / 1e9:.0f} GB are left")
    return {"x": filled(0, 1, 0), "grad": filled(1, 2, -1), "written": filled(2, 1, 0)}


def arguments(large: dict[str, Tensor], names: tuple[str, ...], written: str) -> list[Tensor]:
    """Tensors of a call, `written` filled anew; what else is needed and only read is `x`."""
    filled(2, 1, 0, large["written"])
    given = {"grad": large["grad"], written: large["written"]}
    return [given.get(name, large["x"]) for name in names]


STEP = ("x_adv", "grad", "x")


@pytest.mark.parametrize("op", UPDATES.values(), ids=UPDATES)
def test_samples_beyond_2_to_31_elements(large, op):
    tensors = arguments(large, op.tensors, op.tensors[0])
    scale = torch.linspace(0.1, 1, SAMPLES)
    numbers = {name: scale * AMOUNTS[name] for name in op.amounts}
    small = [[tensor[part].clone() for tensor in tensors] for part in PARTS]
    op.run(*tensors, **numbers)
    for part, own in zip(PARTS, small, strict=True):
        options = {name: value[part] for name, value in numbers.items()}
        expected = op.reference(*own, **options)
        assert near(large["written"][part], expected)
        assert not torch.equal(expected, own[0])


@pytest.mark.parametrize("op", ["linf_step_", "l2_project_", "l1_project_"])
def test_one_sample_of_more_than_2_to_31_elements(large, op):
    names = STEP if op == "linf_step_" else ("x_adv", "x")
    numbers = {"eps": {"linf_step_": 0.05, "l2_project_": 1e3, "l1_project_": 1e7}[op]}
    if op == "linf_step_":
        numbers["step_size"] = 0.01
    tensors = arguments(large, names, "x_adv")
    getattr(ops, op)(*(tensor.view(1, -1) for tensor in tensors), **numbers)
    result, x = large["written"], large["x"]
    for begin in range(PERIOD, SAMPLES, PERIOD):
        part = result[begin : begin + PERIOD]
        assert torch.equal(part, result[: len(part)])
    if op == "linf_step_":
        first = block(2, 1, 0)[:9]
        expected = reference.linf_step(first, large["grad"][:9], x[:9], **numbers)
        assert torch.equal(result[:9], expected)
        return
    change = (result[:PERIOD].double() - x[:PERIOD].double()).abs()
    whole = SAMPLES / PERIOD
    length = change.sum() * whole if op == "l1_project_" else (change.square().sum() * whole).sqrt()
    assert 0.9 * numbers["eps"] < length.item() <= numbers["eps"] * (1 + 1e-4)


def test_random_starts_beyond_2_to_31_elements(large):
    large.pop("written", None)  # its memory is the result's
    for norm in ("linf", "l2", "l1"):
        start = getattr(ops, f"{norm}_random_start")
        result = start(large["x"], eps=2.0, generator=torch.Generator().manual_seed(3))
        for part in PARTS:
            ids = torch.arange(SAMPLES)[part]
            with ops.use_backend("reference"):
                generator = torch.Generator().manual_seed(3)
                expected = start(large["x"][part], eps=2.0, generator=generator, sample_ids=ids)
            assert near(result[part], expected)
        del result


def test_select_best_beyond_2_to_31_elements(large):
    large.pop("written", None)
    best_x, best_grad, new = large.pop("x"), large.pop("grad"), filled(4, 1, 0)
    better = torch.arange(SAMPLES) % 2 == 1
    kept = [best_x[part].clone() for part in PARTS]
    best_loss = torch.zeros(SAMPLES)
    improved = ops.select_best_(best_x, best_grad, best_loss, new, new, better.float())
    assert torch.equal(improved, better)
    for part, before in zip(PARTS, kept, strict=True):
        rows = better[part][:, None]
        assert torch.equal(best_x[part], torch.where(rows, new[part], before))
        assert torch.equal(best_grad[part][better[part]], new[part][better[part]])

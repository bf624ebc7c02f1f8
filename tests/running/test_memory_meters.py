"""What the CPU's meter counts, by hand, and what it reads of a system."""

from pathlib import Path

import pytest
import torch
from torch import nn

from roli_fast.running.memory_meters import CpuMeter

METER = CpuMeter(Path("/"))


def system(root: Path, **files: str) -> CpuMeter:
    """A system with these files; `__` in a name stands for /."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("DOT", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return CpuMeter(root)


def test_peak_of_a_chain() -> None:
    x = torch.ones(1000)  # 4000 bytes, there before

    def chain() -> None:
        a = x * 2  # 4000
        b = a.view(10, 100)  # the same memory
        del a
        c = b + 1  # 8000
        del b  # 4000
        c.add_(1)
        c + 1  # 8000

    assert METER.peak(chain) == 8000


def test_peak_of_a_step_by_its_saved_tensors() -> None:
    """Linear, tanh, linear on n images: tanh's output, and the gradients of the widest layer."""
    model = nn.Sequential(nn.Linear(10, 1000), nn.Tanh(), nn.Linear(1000, 1))
    model.requires_grad_(False)

    def step(images: int) -> int:
        x = torch.ones(images, 10, requires_grad=True)
        return METER.peak(lambda: torch.autograd.grad(model(x).sum(), x))

    each = step(5) - step(4)
    # activations before and after tanh (one of them dead once the other's gradient is there)
    assert 2 * 4000 <= each <= 3 * 4000
    assert step(6) - step(5) == each


def test_nothing_is_counted_afterwards() -> None:
    assert METER.peak(lambda: None) == 0
    kept = torch.ones(10)
    assert METER.peak(lambda: kept.add_(1)) == 0


def test_free_memory_of_this_machine() -> None:
    free = METER.free()
    assert free is None or 2**20 < free < 2**50


def test_free_memory_is_the_least_of_machine_and_group(tmp_path: Path) -> None:
    info = "MemTotal: 9000 kB\nMemAvailable:    2000 kB\n"
    free = int(0.8 * 2000 * 1024)
    assert system(tmp_path / "a", proc__meminfo=info).free() == free
    group = dict(sys__fs__cgroup__memoryDOTcurrent="500000\n")
    unlimited = dict(sys__fs__cgroup__memoryDOTmax="max\n")
    assert system(tmp_path / "b", proc__meminfo=info, **group, **unlimited).free() == free
    limited = dict(sys__fs__cgroup__memoryDOTmax="1000000\n")
    assert system(tmp_path / "c", proc__meminfo=info, **group, **limited).free() == 400_000


@pytest.mark.parametrize("text", ["", "MemTotal: 9000 kB\n"])
def test_a_system_that_does_not_tell(tmp_path: Path, text: str) -> None:
    assert system(tmp_path, proc__meminfo=text).free() is None

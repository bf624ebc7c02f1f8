"""Out of memory: the error names an argument, its value, and a number of images that fits."""

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from roli_fast.errors import ArgumentError, InterruptedRunError, OutOfMemoryError
from roli_fast.running.memory import explained, is_out_of_memory, largest, meter_of

REFUSED = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"


class Device:
    """Takes `fixed` bytes and `each` an image, and refuses more than it has."""

    name = "a small device"

    def __init__(self, has: int, *, fixed: int = 100, each: int = 10, tries: int = 3) -> None:
        self.has, self.fixed, self.each, self.tries = has, fixed, each, tries
        self.told: int | None = has
        self.asked: list[int] = []
        self.held = 0

    def free(self) -> int | None:
        return self.told

    def peak(self, work: Callable[[], object]) -> int:
        work()
        return self.held

    def step(self, images: int) -> None:
        self.asked.append(images)
        self.held = self.fixed + self.each * images
        if self.held > self.has:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def refused(device: Device, size: int, **options: object) -> str:
    with pytest.raises(OutOfMemoryError) as caught:
        with explained("batch_size", size, device.step, device, **options):  # type: ignore[arg-type]
            device.step(size)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__ is False
    return str(caught.value)


def test_names_the_argument_its_value_and_what_fits() -> None:
    device = Device(1000)  # 100 + 10 n <= 1000: 90 images
    text = refused(device, 128, where="stage 'probe': ")
    assert text == (
        "stage 'probe': `batch_size`: expected a number of images that fit into the memory of "
        "a small device, got 128. About 90 would fit (tried once)."
    )
    assert device.asked == [128, 2, 4, 90]


@pytest.mark.parametrize(
    ("has", "size", "fits"),
    [
        (1000, 91, 90),
        (1000, 10_000, 90),
        (130, 64, 2),  # four do not fit, so there is no slope: what was measured is the answer
        (125, 64, 2),
        (115, 64, 1),
        (105, 64, 0),
        (125, 3, 2),
        (115, 2, 1),
        (105, 1, 0),
    ],
)
def test_largest_by_hand(has: int, size: int, fits: int) -> None:
    device = Device(has)
    found, tried = largest(size, device.step, device)
    assert tried
    assert found == fits
    if found:
        device.step(found)  # it does fit


def test_what_comes_later_is_set_aside() -> None:
    device = Device(1000)
    assert largest(128, device.step, device, later=300) == (60, True)


def test_growth_that_is_not_even_is_tried_again() -> None:
    device = Device(1000)

    def uneven(images: int) -> None:  # from 60 images on a library takes 400 more
        device.each = 10 if images < 60 else 16
        device.step(images)

    assert largest(128, uneven, device) == (50, True)  # 90 -> 67 -> 50
    assert device.asked == [2, 4, 90, 67, 50]


def test_what_should_have_fitted_and_did_not() -> None:
    """Memory in pieces, say: less than what was asked for is advised all the same."""
    device = Device(1000)
    assert largest(40, device.step, device) == (30, True)


def test_a_batch_in_parts() -> None:
    """An update of 256 images in four parts: 40 of the 64 in each would fit."""
    device = Device(500)
    assert "got 256. About 160 would fit (tried once)." in refused(device, 256, parts=4)
    assert device.asked == [256, 2, 4, 40]


def test_nothing_is_tried_where_the_system_ends_processes() -> None:
    device = Device(1000, tries=0)
    assert "About 90 would fit (estimated, not tried)." in refused(device, 128)
    assert device.asked == [128, 2, 4]


def test_a_device_that_does_not_tell_what_is_left() -> None:
    device = Device(1000)
    device.told = None
    assert refused(device, 128).endswith("Lower it; what would fit cannot be measured here.")


def test_nothing_fits() -> None:
    assert refused(Device(50), 128).endswith(
        "No number would fit: take a smaller model or smaller images."
    )


def test_work_is_saved_before_anything_is_tried() -> None:
    device, seen = Device(1000), []
    refused(device, 128, first=lambda: seen.append(list(device.asked)))
    assert seen == [[128]]


def test_other_errors_pass_through() -> None:
    device = Device(1000)
    for error in (RuntimeError("mat1 and mat2"), ArgumentError("x"), InterruptedRunError("stop")):
        with pytest.raises(type(error)) as caught:
            with explained("batch_size", 8, device.step, device):
                raise error
        assert caught.value is error
    assert device.asked == []


def test_one_explanation_is_enough() -> None:
    device = Device(1000)
    with pytest.raises(OutOfMemoryError, match="`inner`"):
        with explained("outer", 8, device.step, device):
            raise OutOfMemoryError("`inner`: ...")
    assert device.asked == []


def test_a_stop_ends_the_trials() -> None:
    device = Device(1000)

    def stopped(_images: int) -> None:
        raise InterruptedRunError("stopped by SIGTERM")

    with pytest.raises(InterruptedRunError):
        with explained("batch_size", 128, stopped, device):
            device.step(128)


def test_the_tensors_of_the_failed_step_are_let_go() -> None:
    device, alive = Device(1000), list[weakref.ref[Tensor]]()

    def step(images: int) -> None:
        big = torch.zeros(1000)
        alive.append(weakref.ref(big))
        device.step(images)

    def none_alive() -> None:
        assert [one() is None for one in alive] == [True]

    with pytest.raises(OutOfMemoryError):
        with explained("batch_size", 128, step, device, first=none_alive):
            step(128)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError(REFUSED), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("shape '[4]' is invalid"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_what_out_of_memory_is(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) is is_one


def test_the_cpu_s_own_words() -> None:
    """2^60 bytes are refused by any machine, at once and without touching memory."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_a_cpu_step_that_does_not_fit() -> None:
    """Real tensors, the CPU's meter: an image takes a megabyte, an allocation of 2^60 is refused
    from 512 images on."""
    meter = meter_of(torch.device("cpu"))

    def step(images: int) -> Tensor:
        if images >= 512:
            return torch.empty(2**60, dtype=torch.uint8)
        return torch.ones(images, 2**20, dtype=torch.uint8) + 1

    with pytest.raises(OutOfMemoryError, match=r"got 512. About \d+ would fit \(estimated"):
        with explained("batch_size", 512, step, meter):
            step(512)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_step_that_does_not_fit() -> None:
    """A quarter of a GiB an image: what is said to fit does, and no more than 1.4 times as many."""
    meter = meter_of(torch.device("cuda", torch.cuda.current_device()))

    def step(images: int) -> None:
        torch.empty(images, 2**28, dtype=torch.uint8, device="cuda")

    with pytest.raises(OutOfMemoryError, match="tried once"):
        with explained("batch_size", 4096, step, meter):
            step(4096)
    fits, _ = largest(4096, step, meter)
    assert fits
    step(fits)
    with pytest.raises(torch.OutOfMemoryError):
        step(int(1.4 * fits))

"""An update that does not fit: the stage's batch size, what would fit, and nothing lost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import FLAGS, assert_same_weights, run_small

from roli_fast.engine import InputGradient
from roli_fast.errors import OutOfMemoryError
from roli_fast.train import fitting, loop, pipeline
from roli_fast.train.__main__ import main
from roli_fast.train.checkpoint import load_resume
from roli_fast.train.objectives import Adversarial

ONE = ["--methods=ranli", "--ranli.epochs=3", "--ranli.batch_size=24"]


class Meter:
    """100 bytes and 10 an image, of what there is."""

    name, tries, held = "a small device", 3, 0

    def __init__(self, has: int) -> None:
        self.has = has

    def free(self) -> int:
        return self.has

    def peak(self, work: Callable[[], object]) -> int:
        work()
        return self.held


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Meter:
    """Refuses more than it has, at any forward."""
    meter, step = Meter(280), Adversarial.__call__

    def limited(self: Adversarial, model: Any, batch: Any, *rest: Any) -> Any:
        terms = step(self, model, batch, *rest)
        meter.held = 100 + 10 * len(batch.y)
        if meter.held > meter.has:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return terms

    monkeypatch.setattr(Adversarial, "__call__", limited)
    monkeypatch.setattr(fitting, "meter_of", lambda _device: meter)
    monkeypatch.setattr(fitting, "later", lambda _optimizer: 0)
    return meter


def test_the_message(device: Meter, tmp_path: Path) -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        run_small(tmp_path / "run", *ONE)
    assert str(caught.value) == (
        "stage 'ranli': `batch_size`: expected a number of images that fit into the memory of "
        "a small device, got 24. About 18 would fit (tried once). Or raise accumulate, with "
        "--resume as well: the update stays the same."
    )


def test_what_was_done_is_kept(
    device: Meter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out in the second epoch; with more of it the run ends as one that never did."""
    device.has = 10_000
    run_small(tmp_path / "whole", *ONE)
    zero, calls = torch.optim.Optimizer.zero_grad, 0

    def counted(self: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        device.has = 10_000 if calls < 5 else 280
        zero(self, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Optimizer, "zero_grad", counted)
        with pytest.raises(OutOfMemoryError):
            run_small(tmp_path / "run", *ONE)
    assert list(tmp_path.glob("run/**/resume.safetensors"))
    device.has = 10_000
    run_small(tmp_path / "run", *ONE)
    assert_same_weights(tmp_path / "whole", tmp_path / "run")


def test_the_exit_status(device: Meter, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main([*FLAGS, *ONE, f"--run_dir={tmp_path / 'run'}"]) == 2
    assert "About 18 would fit" in caplog.text


def test_a_resume_may_take_the_update_in_parts(device: Meter, tmp_path: Path) -> None:
    run = [f"--run_dir={tmp_path / 'run'}"]
    assert main([*FLAGS, *ONE, *run]) == 2
    assert main([*run, "--resume", "--ranli.accumulate=2"]) == 0
    assert main([*run, "--resume", "--ranli.accumulate=2", "--ranli.batch_size=12"]) == 2


@pytest.mark.parametrize("what", ["validation", "test"])
def test_an_evaluation_that_does_not_fit(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is in fp32 where training may be in bf16. The epoch before it is not lost."""
    run_small(tmp_path / "whole", *ONE)
    meter, module = Meter(200), {"validation": loop, "test": pipeline}[what]

    class Limited(InputGradient):
        def __call__(self, x: torch.Tensor, *rest: Any) -> Any:
            meter.held = 100 + 10 * len(x)
            if meter.held > meter.has:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return super().__call__(x, *rest)

    def refused(*_arguments: Any, **_options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "InputGradient", Limited)
        patch.setattr(fitting, "meter_of", lambda _device: meter)
        patch.setattr(module, "evaluate", refused)
        assert main([*FLAGS, *ONE, f"--run_dir={tmp_path / 'run'}"]) == 2
    where = {"validation": "stage 'ranli', validation", "test": "test, in finetune's batches"}[what]
    assert f"{where}: `batch_size`" in caplog.text and "About 10 would fit" in caplog.text
    if what == "validation":
        (path,) = tmp_path.glob("run/**/resume.safetensors")
        saved = load_resume(path).progress
        assert (saved.epoch, saved.step) == (0, 3)
    run_small(tmp_path / "run", *ONE)
    assert_same_weights(tmp_path / "whole", tmp_path / "run")


def test_memory_that_the_optimiser_takes_at_its_first_step() -> None:
    weight = torch.nn.Parameter(torch.zeros(10))
    optimizer = torch.optim.AdamW([weight])
    assert fitting.later(optimizer) == 2 * 40
    weight.grad = torch.ones(10)
    optimizer.step()
    assert fitting.later(optimizer) == 0

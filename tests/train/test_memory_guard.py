"""An update or validation that does not fit: the stage's batch size is named, nothing is lost."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small import FLAGS, assert_same_weights, run_small

from roli_fast.errors import OutOfMemoryError
from roli_fast.train.__main__ import main
from roli_fast.train.objectives import Adversarial, Step

ONE = ["--methods=ranli", "--ranli.epochs=3", "--ranli.batch_size=24"]


class Device:
    """Refuses an update of more images than it holds, from the update `after` on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.holds, self.after, self.updates = 18, 0, 0
        step = Adversarial.__call__

        def limited(objective: Adversarial, asked: Step) -> Any:
            self.updates += 1
            if self.updates > self.after and len(asked.batch.y) > self.holds:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return step(objective, asked)

        monkeypatch.setattr(Adversarial, "__call__", limited)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


def test_what_was_done_is_kept(device: Device, tmp_path: Path) -> None:
    """Memory runs out in the second epoch; with more of it the run ends as one that never did."""
    device.holds = 24
    run_small(tmp_path / "whole", *ONE)
    device.holds, device.after = 18, device.updates // 2
    device.updates = 0
    with pytest.raises(OutOfMemoryError):
        run_small(tmp_path / "run", *ONE)
    assert list(tmp_path.glob("run/**/resume.pt"))
    device.holds = 24
    run_small(tmp_path / "run", *ONE)
    assert_same_weights(tmp_path / "whole", tmp_path / "run")


def test_a_resume_may_take_the_update_in_parts(
    device: Device, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = [f"--run_dir={tmp_path / 'run'}"]
    assert main([*FLAGS, *ONE, *run]) == 2
    message = (
        "stage 'ranli': `batch_size`: expected a number of images that fit into the memory of "
    )
    assert f"{message}cpu, got 24. Lower it, or raise accumulate" in caplog.text
    assert main([*run, "--resume", "--ranli.accumulate=2"]) == 0
    assert main([*run, "--resume", "--ranli.accumulate=2", "--ranli.batch_size=12"]) == 2

"""An update that does not fit: the stage's batch size is named, nothing is lost."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small import FLAGS, assert_same_weights, run_small

from roli_fast.train.__main__ import main
from roli_fast.train.objectives import Adversarial, Step

ONE = ["--methods=ranli", "--ranli.epochs=2", "--ranli.batch_size=24"]
"""72 images: 3 updates an epoch."""


def test_what_was_done_is_kept_and_a_resume_may_take_the_update_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory runs out in the second epoch; with more of it the run ends as one that never did."""
    whole, folder = tmp_path / "whole", tmp_path / "run"
    run_small(whole, *ONE)
    step, updates = Adversarial.__call__, 0

    def limited(objective: Adversarial, asked: Step) -> Any:
        nonlocal updates
        updates += 1
        if updates > 4 and len(asked.batch.y) > 18:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return step(objective, asked)

    with monkeypatch.context() as patch:
        patch.setattr(Adversarial, "__call__", limited)
        assert main([*FLAGS, *ONE, f"--run_dir={folder}"]) == 2
        message = (
            "stage 'ranli': `batch_size`: expected a number of images that fit into the memory of "
        )
        assert f"{message}cpu, got 24. Lower it, or raise accumulate" in caplog.text
        assert list(folder.rglob("resume.pt"))
        again = [f"--run_dir={folder}", "--resume"]
        shutil.copytree(folder, parts := tmp_path / "parts")
        run = [f"--run_dir={parts}", "--resume", "--ranli.accumulate=2"]
        assert main([*run, "--ranli.batch_size=12"]) == 2
        assert main(run) == 0
    assert main(again) == 0
    assert_same_weights(whole, folder)

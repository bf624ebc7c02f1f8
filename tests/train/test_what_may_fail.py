"""What only shows, measures or estimates never ends a run; a full disk and names that no file can
hold end it in one sentence."""

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from small import FLAGS, assert_same_weights, run_small, small
from torch import nn
from torch.utils.tensorboard import writer

from roli_fast import files
from roli_fast.errors import ArgumentError
from roli_fast.running import device
from roli_fast.train import __main__ as program
from roli_fast.train import context, run_directory
from roli_fast.train.cli import parse
from roli_fast.train.context import Recorder

SURROGATE = os.fsdecode(b"x\xff")
PLACE = {"seed": 0, "method": "roli", "stage": "probe"}


def no_space(*_arguments: object, **_options: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_at(target: str, commit: Callable[[Path, Path], None], half: Path, path: Path) -> None:
    (no_space if path.name == target else commit)(half, path)


def test_a_full_disk_says_how_to_go_on_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Full at each file in turn; what comes out is what an endless disk gives."""
    folder = tmp_path / "a run"
    flags = [*FLAGS, "--checkpoint_minutes=0", "--methods=probe"]
    again = f"python -m roli_fast.train --run_dir '{folder}' --resume"
    for target in ("resume.pt", "metrics.jsonl", "summary.json"):
        caplog.clear()
        with monkeypatch.context() as full:
            full.setattr(files, "commit", partial(full_at, target, files.commit))
            if target == "metrics.jsonl":
                full.setattr(context, "open", no_space, raising=False)
            begun = ["--resume"] if (folder / "config.yaml").exists() else flags
            assert program.main(["--run_dir", str(folder), *begun]) == 2
        message = caplog.messages[-1]
        assert f"{target}' could not be written: [Errno 28] No space left on device" in message
        assert message.endswith(again)
        assert not list(folder.rglob(".*.tmp"))
    monkeypatch.setattr(program, "analysis_table", no_space)
    assert program.main(["--run_dir", str(folder), "--resume"]) == 0
    run_small(tmp_path / "endless", "--methods=probe")
    assert_same_weights(tmp_path / "endless", folder)


def test_tensorboard_is_only_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer.SummaryWriter, "add_scalar", no_space)
    with Recorder(tmp_path) as one:
        for epoch in range(3):
            one.add(PLACE, epoch, {"loss": 1.0})
        one.forget(PLACE, 2)
        one.add(PLACE, 2, {"loss": 2.0})
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 3


class Odd(nn.Module):
    """No forward of one image, nor three channels."""

    def __init__(self, weights: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(weights, device="meta"))


@pytest.mark.parametrize(("weights", "expected"), [(0, 7), (10**4, 1), (10**7, 7)])
def test_threads_are_chosen_without_a_pass(
    monkeypatch: pytest.MonkeyPatch, weights: int, expected: int
) -> None:
    """32 images of 32 x 32: about 41 MFLOP, and 41 GFLOP."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(device, "_usable_cpus", lambda: 8)
    assert device.pick_threads(Odd(weights), 32, 32) == expected


def test_names_that_no_file_can_hold(tmp_path: Path) -> None:
    told = r"`--data.root`: expected text in UTF-8, got .*udcff"
    with pytest.raises(ArgumentError, match=told):
        parse([*FLAGS, f"--data.root={SURROGATE}"])
    with pytest.raises(ArgumentError, match="`--run_dir`"):
        run_directory.open_run_dir(tmp_path / SURROGATE, small(), resume=False)
    assert not list(tmp_path.iterdir())

"""A batch in parts: the update of one large batch, in less memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small import run_small, weights

from roli_fast.attacks import PGD
from roli_fast.train import Stage, loop, run_directory

ONE = ["--methods=ranli", "--ranli.batch_size=30", "--ranli.epochs=2", "--ranli.attack.steps=4"]
"""72 images: batches of 30, 30 and 12."""


@pytest.fixture
def in_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of double precision, so that what is left is no rounding of fp32."""
    create = run_directory.create
    monkeypatch.setattr(run_directory, "create", lambda *a, **o: create(*a, **o).double())


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of every part that was attacked for training, or 0 for the end of an update."""
    sizes: list[int] = []
    attack, update = PGD.search, loop.StageLoop._update

    def attacked(self: PGD, inputs: Any) -> Any:
        if self.steps == 4:  # the validation takes 2, the test 3
            sizes.append(len(inputs.x))
        return attack(self, inputs)

    def updated(self: loop.StageLoop, epoch: int, batch: Any) -> Any:
        row = update(self, epoch, batch)
        sizes.append(0)
        return row

    monkeypatch.setattr(PGD, "search", attacked)
    monkeypatch.setattr(loop.StageLoop, "_update", updated)
    return sizes


@pytest.mark.usefixtures("in_fp64")
def test_the_result_is_that_of_one_large_batch(tmp_path: Path) -> None:
    """In fp64 to 1e-12 after 6 updates; momentum SGD, for Adam's first steps are the gradients'
    signs, in which a rounding around 0 is a whole step."""
    flags = [*ONE, "--ranli.optimizer.name=sgd"]
    run_small(tmp_path / "whole", *flags)
    run_small(tmp_path / "parts", *flags, "--ranli.accumulate=4")
    whole, split = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == split.keys()
    moved = 0.0
    for path, tensors in whole.items():
        for name, tensor in tensors.items():
            assert tensor.dtype != torch.float32
            torch.testing.assert_close(split[path][name], tensor, rtol=1e-12, atol=1e-12)
            moved = max(moved, float((split[path][name] - tensor).abs().max()))
    assert moved > 0  # the parts were summed in another order: they were parts


def test_passes_are_counted_by_parts(parts: list[int], tmp_path: Path) -> None:
    """Each image is attacked once an update, the optimiser steps once, and parts are even."""
    run_small(tmp_path / "run", *ONE, "--ranli.accumulate=4")
    epoch = [7, 8, 7, 8, 0] * 2 + [3, 3, 3, 3, 0]
    assert parts == epoch * 2


def test_no_part_is_of_one_image(parts: list[int], tmp_path: Path) -> None:
    """Batches of 23: 3 and one of 3 images, which stays whole."""
    flags = ["--ranli.batch_size=23", "--ranli.accumulate=2", "--ranli.epochs=1"]
    run_small(tmp_path / "run", *ONE, *flags)
    assert parts == [11, 12, 0] * 3 + [3, 0]


def test_evaluation_takes_no_more_images_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    create = run_directory.create

    def hooked(*arguments: Any, **options: Any) -> Any:
        model = create(*arguments, **options)
        model.register_forward_pre_hook(lambda _model, inputs: seen.append(len(inputs[0])))
        return model

    monkeypatch.setattr(run_directory, "create", hooked)
    flags = ["--finetune.batch_size=30", "--finetune.accumulate=4"]
    run_small(tmp_path / "run", *ONE, *flags, "--ranli.accumulate=4")
    assert max(seen) == 8


def test_how_many_images_are_held_at_once() -> None:
    assert [Stage(batch_size=30, accumulate=a).part_size(1) for a in (1, 4, 40)] == [30, 8, 2]
    assert [Stage(batch_size=30, accumulate=4).part_size(world) for world in (2, 3)] == [4, 3]
    assert Stage(batch_size=1).part_size(8) == 1

"""A batch in parts: the update of one large batch, in less memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small import run_small, weights

from roli_fast.attacks import PGD
from roli_fast.train import Stage, loop, run_directory

ONE = ["--methods=ranli", "--ranli.batch_size=30", "--ranli.attack.steps=4"]
"""72 images: batches of 30, 30 and 12."""


def test_the_result_is_that_of_one_large_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp64 to 1e-12 after 6 updates, their average too; momentum SGD, for Adam's first steps are
    the gradients' signs, in which a rounding around 0 is a whole step."""
    create = run_directory.create
    monkeypatch.setattr(run_directory, "create", lambda *a, **o: create(*a, **o).double())
    flags = [*ONE, "--ranli.optimizer.name=sgd", "--ranli.epochs=2", "--ranli.averaging={}"]
    run_small(tmp_path / "whole", *flags)
    run_small(tmp_path / "parts", *flags, "--ranli.accumulate=4")
    whole, split = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == split.keys()
    moved = 0.0
    for path, tensors in whole.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(split[path][name], tensor, rtol=1e-12, atol=1e-12)
            moved = max(moved, float((split[path][name] - tensor).abs().max()))
    assert moved > 0  # the parts were summed in another order: they were parts


@pytest.mark.parametrize(
    ("size", "parts", "expected"),
    [
        (30, 4, [7, 8, 7, 8, 0] * 2 + [3, 3, 3, 3, 0]),
        (23, 2, [11, 12, 0] * 3 + [3, 0]),  # none of one image: the last 3 stay whole
    ],
)
def test_parts_are_even_and_hold_no_more_images_in_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, parts: int, expected: list[int]
) -> None:
    """Each image is attacked once an update, after which the optimiser steps (0) once."""
    sizes: list[int] = []
    seen: list[int] = []
    attack, update, create = PGD.search, loop.StageLoop._update, run_directory.create

    def attacked(self: PGD, inputs: Any) -> Any:
        if self.steps == 4:  # the validation takes 2, the test 3
            sizes.append(len(inputs.x))
        return attack(self, inputs)

    def updated(self: loop.StageLoop, epoch: int, batch: Any) -> Any:
        row = update(self, epoch, batch)
        sizes.append(0)
        return row

    def hooked(*arguments: Any, **options: Any) -> Any:
        model = create(*arguments, **options)
        model.register_forward_pre_hook(lambda _model, inputs: seen.append(len(inputs[0])))
        return model

    monkeypatch.setattr(PGD, "search", attacked)
    monkeypatch.setattr(loop.StageLoop, "_update", updated)
    monkeypatch.setattr(run_directory, "create", hooked)
    flags = [f"--ranli.batch_size={size}", f"--ranli.accumulate={parts}", "--ranli.epochs=1"]
    tested = [f"--finetune.batch_size={size}", f"--finetune.accumulate={parts}"]
    run_small(tmp_path / "run", *ONE, *flags, *tested)
    assert sizes == expected and max(seen) == max(expected)


def test_how_many_images_are_held_at_once() -> None:
    assert [Stage(batch_size=30, accumulate=a).part_size(1) for a in (1, 4, 40)] == [30, 8, 2]
    assert [Stage(batch_size=30, accumulate=4).part_size(world) for world in (2, 3)] == [4, 3]
    assert Stage(batch_size=1).part_size(8) == 1

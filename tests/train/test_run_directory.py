"""A run directory is made late, never overwritten, and never mixed with another experiment."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from small import FLAGS, run_small, small
from tiny_data import write_folder, write_image

from roli_fast.analyze import main as analyze
from roli_fast.errors import DataError, RoliFastError, RunDirectoryError
from roli_fast.files import write_tensors
from roli_fast.train import run
from roli_fast.train.cli import parse
from roli_fast.train.run_directory import open_run_dir, read_result, read_test
from roli_fast.train.stage import StageResult


def folder_flags(images: Path) -> list[str]:
    kept = [flag for flag in FLAGS if not flag.startswith("--data")]
    kept += ["--data=image_folder", f"--data.root={images}", "--data.image_size=16"]
    return [*kept, "--methods=roli", "--probe.epochs=1", "--finetune.epochs=1"]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--data.root=/no/such/folder", "/no/such/folder"),
        ("--data.root=one", "two or more classes"),
        ("--model.name=vit_of_dreams", "vit_of_dreams"),
        ("--device=cuda:99", "cuda:99"),
    ],
)
def test_a_mistake_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "images", {"a": 12, "b": 12})
    write_folder(tmp_path / "one", {"only": 12})
    experiment = parse([*folder_flags(Path("images")), flag]).experiment
    with pytest.raises(RoliFastError, match=words):
        run(experiment, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for target in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunDirectoryError, match="--run_dir"):
            open_run_dir(target, small(), resume=False)
    assert (tmp_path / "file").read_text() == "mine"


def test_another_experiment_is_refused_and_another_place_is_not(tmp_path: Path) -> None:
    run_small(tmp_path / "run", "--methods=probe", "--probe.epochs=1")
    with pytest.raises(RunDirectoryError, match="another configuration"):
        run_small(tmp_path / "run", "--methods=probe", "--probe.epochs=1", "--threat.eps=0.3")
    again = ["--run_dir", str(tmp_path / "run"), "--resume", "--device", "cpu", "--workers", "1"]
    command = parse(again)
    assert (command.experiment.device, command.experiment.workers) == ("cpu", 1)
    run(command.experiment, tmp_path / "run", resume=True, quiet=True)


RESULT = asdict(StageResult("probe", 3, 1, 0.5, 10, 100, 1.5, 66.0))


def test_a_damaged_result_is_named_with_its_field(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(RESULT))
    assert asdict(read_result(path)) == RESULT
    for change, named in (({"epochs": "x"}, "`epochs`"), ({"other": 1}, "`other`")):
        path.write_text(json.dumps(RESULT | change))
        with pytest.raises(RunDirectoryError, match=rf"result\.json': .*{named}"):
            read_result(path)


@pytest.mark.parametrize(
    "change",
    [{"clean_flags": "11x0"}, {"robust_accuracy": {"pgd-9": 0.5}}],
)
def test_a_damaged_test_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "test.json"
    experiment = parse(["--data=digits", "--test.steps=10"]).experiment
    whole = {"images": 4, "clean_accuracy": 0.5, "clean_flags": "1100"}
    whole |= {"robust_accuracy": {"pgd-10": 0.25}, "robust_flags": {"pgd-10": "1000"}}
    path.write_text(json.dumps(whole))
    assert read_test(path, experiment) == whole
    path.write_text(json.dumps(whole | change))
    with pytest.raises(RunDirectoryError, match=r"test\.json': "):
        read_test(path, experiment)


def test_files_can_be_read_by_others(tmp_path: Path) -> None:
    """safetensors makes its own private."""
    umask = os.umask(0)
    os.umask(umask)
    write_tensors(path := tmp_path / "a.safetensors", {"x": torch.ones(1)}, {})
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


COUNTS = {
    f"{s}/{c}": n for s, n in (("train", 12), ("val", 4), ("test", 4)) for c in ("cat", "dog")
}


def run_folder(folder: Path, images: Path) -> None:
    flags = [*folder_flags(images), "--probe.batch_size=4", "--methods=probe"]
    run(parse(flags).experiment, folder, resume=folder.exists(), quiet=True)


def test_damaged_images_are_told_before_anything_is_made(tmp_path: Path) -> None:
    images = write_folder(tmp_path / "images", COUNTS)
    victims = [f"{split}/dog/2.png" for split in ("train", "val", "test")]
    for victim in victims:
        whole = (images / victim).read_bytes()
        (images / victim).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError) as caught:
        run_folder(tmp_path / "run", images)
    assert all(victim in str(caught.value) for victim in victims)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("split", ["train", "test"])
def test_other_images_are_refused(tmp_path: Path, split: str) -> None:
    """Other pixels under the same names, or one image less."""
    images, folder = write_folder(tmp_path / "images", COUNTS), tmp_path / "run"
    run_folder(folder, images)
    path = images / split / "dog" / "2.png"
    before = path.read_bytes()
    write_image(path, seed=12345)
    with pytest.raises(RunDirectoryError, match=f"another data {split} pixels"):
        run_folder(folder, images)
    assert analyze([str(folder)]) == 2
    path.unlink()
    with pytest.raises(RunDirectoryError, match=f"another data {split} images"):
        run_folder(folder, images)
    path.write_bytes(before)
    run_folder(folder, images)

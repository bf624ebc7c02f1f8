"""A run directory is made late, never overwritten, and never mixed with another experiment."""

import os
from pathlib import Path

import pytest
from small import FLAGS, run_small, small
from tiny_data import write_folder

from roli_fast.errors import DataError, RoliFastError, RunDirectoryError
from roli_fast.files import write_json
from roli_fast.train import run
from roli_fast.train.cli import parse
from roli_fast.train.run_directory import saved_environment

PACKAGE = Path(__file__).resolve().parents[2]


def folder_flags(images: Path) -> list[str]:
    kept = [flag for flag in FLAGS if not flag.startswith("--data")]
    kept += ["--data=image_folder", f"--data.root={images}", "--data.image_size=16"]
    return [*kept, "--methods=roli", "--probe.epochs=1", "--finetune.epochs=1"]


@pytest.mark.parametrize(
    "flag",
    ["--data.root=/no/such/folder", "--model.name=vit_of_dreams", "--device=cuda:99"],
)
def test_a_mistake_leaves_no_folder(tmp_path: Path, flag: str) -> None:
    images = write_folder(tmp_path / "images", {"a": 12, "b": 12})
    with pytest.raises(RoliFastError):
        run(parse([*folder_flags(images), flag]).experiment, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("where", ["file", "below a file"])
def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("mine")
    target = tmp_path / "file" if where == "file" else tmp_path / "file" / "run"
    with pytest.raises(RunDirectoryError, match="--run_dir"):
        run_small_new(target)
    assert (tmp_path / "file").read_text() == "mine"


def run_small_new(folder: Path) -> None:
    run(small("--methods=probe", "--probe.epochs=1"), folder, quiet=True)


def test_another_experiment_is_refused(tmp_path: Path) -> None:
    run_small(tmp_path / "run", "--methods=probe", "--probe.epochs=1")
    with pytest.raises(RunDirectoryError, match="another configuration"):
        run_small(tmp_path / "run", "--methods=probe", "--probe.epochs=1", "--threat.eps=0.3")


def test_other_images_are_refused(tmp_path: Path) -> None:
    images = write_folder(tmp_path / "images", {"a": 12, "b": 12})
    experiment = parse(folder_flags(images)).experiment
    run(experiment, tmp_path / "run", quiet=True)
    (images / "a" / "3.png").unlink()
    with pytest.raises(RunDirectoryError, match="1 images of data train that are gone: a/3.png"):
        run(experiment, tmp_path / "run", resume=True, quiet=True)


def test_a_run_of_before_is_known_by_the_names_of_its_images(tmp_path: Path) -> None:
    write_json(tmp_path / "environment.json", {"identity": {"data test images": "a"}})
    found = {"data test images": "a", "data test pixels": "b"}
    assert saved_environment(tmp_path, found)
    with pytest.raises(RunDirectoryError, match="another data test images"):
        saved_environment(tmp_path, {**found, "data test images": "c"})


def test_the_place_of_a_run_may_change(tmp_path: Path) -> None:
    run_small(tmp_path / "run", "--methods=probe", "--probe.epochs=1")
    again = ["--run_dir", str(tmp_path / "run"), "--resume", "--device", "cpu", "--workers", "1"]
    command = parse(again)
    assert (command.experiment.device, command.experiment.workers) == ("cpu", 1)
    run(command.experiment, tmp_path / "run", resume=True, quiet=True)


def test_one_class_is_refused(tmp_path: Path) -> None:
    images = write_folder(tmp_path / "images", {"only": 12})
    with pytest.raises(DataError, match="two or more classes"):
        run(parse(folder_flags(images)).experiment, tmp_path / "run", quiet=True)


def test_files_can_be_read_by_others(tmp_path: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    run_small_new(tmp_path / "run")
    for path in tmp_path.rglob("*.safetensors"):
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask, path


def test_recipes_are_part_of_the_package() -> None:
    """An editable install finds them anyway; a wheel only if they are declared."""
    declared = (PACKAGE / "pyproject.toml").read_text()
    assert '"recipes/*.yaml"' in declared
    assert "recursive-include roli_fast/recipes *.yaml" in (PACKAGE / "MANIFEST.in").read_text()

"""A damaged image stops a run with its path, and costs nothing but the time to mend it."""

from pathlib import Path

import pytest
from small import FLAGS, assert_same_weights
from tiny_data import write_folder

from roli_fast.errors import DataError
from roli_fast.train import run
from roli_fast.train.cli import parse

COUNTS = {
    f"{s}/{c}": n for s, n in (("train", 12), ("val", 4), ("test", 4)) for c in ("cat", "dog")
}


def run_folder(folder: Path, images: Path) -> None:
    flags = [f for f in FLAGS if not f.startswith("--data")]
    flags += ["--data=image_folder", f"--data.root={images}", "--data.image_size=16"]
    command = parse([*flags, "--probe.batch_size=4", "--methods=roli"])
    run(command.experiment, folder, resume=folder.exists(), quiet=True)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_mend_the_image_and_go_on(tmp_path: Path, split: str) -> None:
    images = write_folder(tmp_path / "images", COUNTS)
    run_folder(tmp_path / "straight", images)
    victim = images / split / "dog" / "2.png"
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"dog.2\.png"):
        run_folder(tmp_path / "run", images)
    probe = tmp_path / "run/seed-0/roli/stage-1-probe"
    assert (probe / "resume.safetensors").exists() == (split != "test")
    victim.write_bytes(whole)
    run_folder(tmp_path / "run", images)
    assert_same_weights(tmp_path / "straight", tmp_path / "run")

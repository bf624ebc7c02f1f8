"""Images that are damaged, rewritten or taken out: told at once, never mixed."""

from pathlib import Path

import pytest
from small import FLAGS
from tiny_data import write_folder, write_image

from roli_fast.analyze import main as analyze
from roli_fast.errors import DataError, RunDirectoryError
from roli_fast.train import run
from roli_fast.train.cli import parse

COUNTS = {
    f"{s}/{c}": n for s, n in (("train", 12), ("val", 4), ("test", 4)) for c in ("cat", "dog")
}


def run_folder(folder: Path, images: Path, *more: str) -> None:
    flags = [f for f in FLAGS if not f.startswith("--data")]
    flags += ["--data=image_folder", f"--data.root={images}", "--data.image_size=16"]
    command = parse([*flags, "--probe.batch_size=4", "--methods=roli", *more])
    run(command.experiment, folder, resume=folder.exists(), quiet=True)


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
    run_folder(folder, images, "--methods=probe")
    path = images / split / "dog" / "2.png"
    before = path.read_bytes()
    write_image(path, seed=12345)
    with pytest.raises(RunDirectoryError, match=f"another data {split} pixels"):
        run_folder(folder, images, "--methods=probe")
    assert analyze([str(folder)]) == 2
    path.unlink()
    with pytest.raises(RunDirectoryError, match=f"another data {split} images"):
        run_folder(folder, images, "--methods=probe")
    path.write_bytes(before)
    run_folder(folder, images, "--methods=probe")

"""Images that are damaged, rewritten or taken out: told at once, never mixed, never a lost run."""

import json
from pathlib import Path

import pytest
from small import FLAGS, assert_same_weights
from tiny_data import write_folder, write_image

from roli_fast.analyze import main as analyze
from roli_fast.errors import DataError, RunDirectoryError
from roli_fast.train import pipeline, run
from roli_fast.train.cli import parse

COUNTS = {
    f"{s}/{c}": n for s, n in (("train", 12), ("val", 4), ("test", 4)) for c in ("cat", "dog")
}
FLAT = {"cat": 20, "dog": 20}


def run_folder(folder: Path, images: Path, *more: str) -> None:
    flags = [f for f in FLAGS if not f.startswith("--data")]
    flags += ["--data=image_folder", f"--data.root={images}", "--data.image_size=16"]
    command = parse([*flags, "--probe.batch_size=4", "--methods=roli", *more])
    run(command.experiment, folder, resume=folder.exists(), quiet=True)


def stop_before(step: str, monkeypatch: pytest.MonkeyPatch, folder: Path, images: Path) -> None:
    """Run until the second stage or the test begins."""

    def stop(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    original, stages = pipeline.run_stage, []

    def run_stage(job, context):  # noqa: ANN001, ANN202
        stages.append(job.name)
        return stop() if step == "finetune" and len(stages) == 2 else original(job, context)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "run_stage", run_stage)
        if step == "test":
            patch.setattr(pipeline, "evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            run_folder(folder, images)


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


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_other_pixels_under_the_same_names_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    images, folder = write_folder(tmp_path / "images", COUNTS), tmp_path / "run"
    stop_before("finetune", monkeypatch, folder, images)
    path = images / split / "dog" / "2.png"
    before = path.read_bytes()
    write_image(path, seed=12345)
    with pytest.raises(RunDirectoryError, match=f"another data {split} pixels"):
        run_folder(folder, images)
    path.write_bytes(before)
    run_folder(folder, images)
    run_folder(tmp_path / "straight", images)
    assert_same_weights(tmp_path / "straight", folder)
    write_image(path, seed=12345)
    assert analyze([str(folder)]) == 2


@pytest.mark.parametrize("counts", [COUNTS, FLAT], ids=["splits", "flat"])
def test_a_test_image_that_was_never_used_may_go(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    counts: dict[str, int],
) -> None:
    """Also where the splits are cut: no other image changes its split or its draws."""
    images, folder = write_folder(tmp_path / "images", counts), tmp_path / "run"
    run_folder(tmp_path / "straight", images)
    stop_before("test", monkeypatch, folder, images)
    began = json.loads((folder / "images.json").read_text())["data"]
    victim = began["paths"][began["test"][1][0]]
    (images / victim).unlink()
    for _ in range(2):  # the second time after the test
        run_folder(folder, images)
    assert "1 test images of data are gone since the run began, which had not used" in caplog.text
    assert victim in caplog.text
    assert_same_weights(tmp_path / "straight", folder)
    flags = [
        json.loads((one / "seed-0/roli/test.json").read_text())["robust_flags"]["pgd-3"]
        for one in (tmp_path / "straight", folder)
    ]
    assert flags[1] == flags[0][0] + flags[0][2:]
    assert analyze([str(folder)]) == 0
    (images / began["paths"][began["test"][2][0]]).unlink()
    with pytest.raises(RunDirectoryError, match="has used 1 images of data test that are gone"):
        run_folder(folder, images)


def test_an_image_beyond_max_per_class_may_go_and_a_training_image_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, folder = write_folder(tmp_path / "images", FLAT), tmp_path / "run"
    few = "--data.max_per_class=3"
    run_folder(folder, images, few)
    began = json.loads((folder / "images.json").read_text())["data"]
    used = {split: [row for row, *_ in began[split]] for split in ("train", "val", "test")}
    unused = set(range(40)) - {row for rows in used.values() for row in rows}
    (images / began["paths"][min(unused)]).unlink()
    run_folder(folder, images, few)
    (images / began["paths"][used["train"][0]]).unlink()
    with pytest.raises(RunDirectoryError, match="used 1 images of data train that are gone"):
        run_folder(folder, images, few)

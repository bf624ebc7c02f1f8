"""An evaluation that was stopped, anywhere and anyhow, ends as one that was not."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import evaluated_models
import pytest
import torch
from evaluated_models import FLAGS, SAVED, assert_same_flags, assess
from processes import CONTEXT, together
from safetensors.torch import load_file
from tiny_data import write_folder, write_image

from roli_fast.errors import ConfigError, DataError, InterruptedRunError, RunDirectoryError
from roli_fast.evaluate import dataset
from roli_fast.evaluate import run as driver
from roli_fast.evaluate.__main__ import main, parse
from roli_fast.evaluate.dataset import Chunk, Store

SEARCHES, CHUNKS = 4, 3


def assert_same(first: Path, second: Path) -> None:
    assert_same_flags(first, second)
    a, b = (load_file(folder / "adversarial.safetensors") for folder in (first, second))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels of the searches that are made."""
    seen: list[str] = []
    original = dataset.AttackRow.measure

    def counted(self: dataset.AttackRow, *rest: Any) -> Any:
        seen.append(self.label)
        return original(self, *rest)

    monkeypatch.setattr(dataset.AttackRow, "measure", counted)
    return seen


@pytest.mark.parametrize("after", [8, SEARCHES * CHUNKS + CHUNKS - 1])
def test_a_power_cut_after_any_write(
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    searches: list[str],
    after: int,
) -> None:
    """Saves before the cut are whole, what came after is done again, and nothing else is."""
    original, saves = Store.save, 0

    def cut(self: Store, *arguments: Any) -> None:
        nonlocal saves
        if saves == after:
            raise KeyboardInterrupt
        saves += 1
        original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "save", cut)
        with pytest.raises(KeyboardInterrupt):
            assess(tmp_path / "out", SAVED)
    assert not (tmp_path / "out/evaluation.json").exists()
    before = len(searches)
    assess(tmp_path / "out", SAVED, resume=True)
    first_saves = -(-after // (SEARCHES + 1))  # a chunk is saved once before its searches
    assert len(searches) - before == SEARCHES * CHUNKS - (after - first_saves)
    assert_same(straight, tmp_path / "out")


def test_a_signal_stops_within_a_search(
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    original, passes = evaluated_models.Nearest.forward, 0

    def stop(self: evaluated_models.Nearest, x: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += 1
        if passes == 40:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, x)

    out = tmp_path / "out"
    flags = [*FLAGS, SAVED, "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(evaluated_models.Nearest, "forward", stop)
        assert main(flags) == 128 + signal.SIGTERM
        assert passes == 40  # not one more
        passes = 0
        with pytest.raises(InterruptedRunError, match="SIGTERM"):
            assess(out, SAVED, resume=True)
    assert f"--out {out} --resume" in caplog.text
    assert main([*flags, "--resume"]) == 0
    assert_same(straight, out)


def test_resume_twice_and_after_the_end(
    straight: Path, tmp_path: Path, searches: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    flags = [*FLAGS, SAVED, "--out", str(out), "--resume"]
    assert main(flags) == 0  # there is nothing yet: it begins
    searches.clear()
    path, torch_here = out / "identity.json", version("torch")
    path.write_text(path.read_text().replace(f'"torch": "{torch_here}"', '"torch": "1.0"'))
    assert "other packages" not in caplog.text
    assert main(flags) == 0
    assert f"(torch 1.0, now {torch_here})" in caplog.text
    assert main(["--out", str(out), "--resume"]) == 0
    assert searches == []
    assert_same(straight, out)


def command(*more: str) -> int:
    """The command line in a process of its own."""
    return main([*FLAGS, *more])


def test_kill_minus_nine_in_the_middle(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    flags = ["--model=evaluated_models:Slow", SAVED, "--out", str(out)]
    process = CONTEXT.Process(target=command, args=flags)
    process.start()
    deadline = time.monotonic() + 300
    while not (out / "chunks/00001.json").exists():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    first = (out / "chunks/00000.json").read_bytes()
    assert not (out / "evaluation.json").exists()
    monkeypatch.setattr(evaluated_models.Slow, "seconds", 0)
    assert main([*FLAGS, *flags, "--resume"]) == 0
    assert (out / "chunks/00000.json").read_bytes() == first
    assert_same(straight, out)


def test_two_processes_find_the_same_flags(straight: Path, tmp_path: Path) -> None:
    """As torchrun starts them."""
    out = tmp_path / "out"
    members = together(2, command, SAVED, "--out", str(out))
    assert [member.value for member in members] == [0, 0], members
    assert "union" in members[0].output and members[1].output == ""
    assert_same(straight, out)
    # one process goes on where two were stopped
    for path in (out / "evaluation.json", out / "chunks/00001.json"):
        path.unlink()
    assert main(["--out", str(out), "--resume"]) == 0
    assert_same(straight, out)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (("another key", None, "out"), "the same model and images everywhere"),
        (("", "no such file", "out"), "process 1 stopped: no such file"),
    ],
)
def test_processes_that_do_not_agree_are_stopped(
    second: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver.Distributed, "all_gather", lambda _self, first: [first, second])
    with pytest.raises(Exception, match=words):
        assess(tmp_path / "out")
    assert not (tmp_path / "out/chunks").exists()


@pytest.fixture
def stopped(straight: Path, tmp_path: Path) -> Path:
    """A folder in which one chunk is missing."""
    out = tmp_path / "out"
    shutil.copytree(straight, out)
    for name in ("evaluation.json", "chunks/00002.json"):
        (out / name).unlink()
    return out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[: len(text) // 2], "00001.json"),
        (lambda text: text.replace("pgd-3", "pgd-4"), "another evaluation"),
        (lambda text: text.replace('"clean": "', '"clean": "x'), "flags are 0 and 1"),
    ],
    ids=["half", "rows", "letters"],
)
def test_a_foreign_or_damaged_chunk_is_told_and_left_alone(
    stopped: Path, change: Callable[[str], str], words: str
) -> None:
    path = stopped / "chunks/00001.json"
    path.write_text(change(path.read_text()))
    before = {p: p.read_bytes() for p in stopped.rglob("*.*") if p.name != "run.lock"}
    with pytest.raises(RunDirectoryError, match=r"00001\.json.*Nothing was changed") as caught:
        assess(stopped, SAVED, resume=True)
    assert words in str(caught.value)
    assert before == {p: p.read_bytes() for p in stopped.rglob("*.*") if p.name != "run.lock"}


def test_another_evaluation_is_refused(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = [SAVED, "--images=80"]
    with pytest.raises(RunDirectoryError, match="another configuration, another images"):
        assess(stopped, *more, resume=True)
    with pytest.raises(ConfigError, match="--resume"):
        parse([*FLAGS, *more, "--out", str(stopped), "--resume"])
    monkeypatch.setattr(evaluated_models, "nearest", evaluated_models.drawn)
    with pytest.raises(RunDirectoryError, match="another model"):
        assess(stopped, SAVED, resume=True)


def test_rewritten_and_damaged_images_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = {f"{split}/{label}": 2 for split in ("train", "test") for label in range(10)}
    images = write_folder(tmp_path / "images", classes)
    more = ["--data=image_folder", f"--data.root={images}", "--images=20", "--chunk=10"]
    original = Store.save

    def cut(self: Store, chunk: Chunk) -> None:
        if chunk.start == 10:
            raise KeyboardInterrupt
        original(self, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "save", cut)
        with pytest.raises(KeyboardInterrupt):
            assess(tmp_path / "out", *more)
    write_image(images / "train/3/1.png", seed=12345)  # is not evaluated
    write_image(images / "test/3/1.png", seed=12345)
    with pytest.raises(RunDirectoryError, match="another pixels"):
        assess(tmp_path / "out", *more, resume=True)
    write_image(images / "test/3/1.png", seed=1301)
    assess(tmp_path / "out", *more, resume=True)
    path = images / "test/5/1.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"test/5/1\.png"):
        assess(tmp_path / "new", *more)
    assert not (tmp_path / "new").exists()


def test_a_used_folder_needs_resume_and_a_stranger_s_is_refused(
    straight: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunDirectoryError, match="Add --resume"):
        assess(straight, SAVED)
    (tmp_path / "config.yaml").write_text("methods: [roli]\n")
    with pytest.raises(ConfigError, match="an evaluation began"):
        parse([*FLAGS, "--out", str(tmp_path), "--resume"])
    with pytest.raises(RunDirectoryError, match="an evaluation began"):
        assess(tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    with pytest.raises(ConfigError, match="--out DIR"):
        parse([*FLAGS, "--resume"])
    (tmp_path / "config.yaml").rename(tmp_path / "notes.txt")
    with pytest.raises(RunDirectoryError, match=r"exists already.*holds no run: name a new"):
        assess(tmp_path)

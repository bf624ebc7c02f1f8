"""An evaluation that was stopped, anywhere and anyhow, ends as one that was not."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_assess import FLAGS, assert_same_flags, assess
from tiny_data import write_folder, write_image

from roli_fast.errors import ConfigError, DataError, InterruptedRunError, RunDirectoryError
from roli_fast.evaluate import rows
from roli_fast.evaluate.__main__ import main
from roli_fast.evaluate.cli import parse
from roli_fast.evaluate.store import Chunk, Store

SEARCHES = 4
CHUNKS = 3


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "out"
    assess(folder, "--save_adversarial=true")
    return folder


def assert_same(first: Path, second: Path) -> None:
    assert_same_flags(first, second)
    a, b = (load_file(folder / "adversarial.safetensors") for folder in (first, second))
    assert all(torch.equal(a[name], b[name]) for name in a)


def count_searches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    original = rows.Search.measure

    def counted(self, *rest):  # noqa: ANN001, ANN202
        seen.append(self.label)
        return original(self, *rest)

    monkeypatch.setattr(rows.Search, "measure", counted)
    return seen


@pytest.mark.parametrize("after", [0, 2, 5, 8, SEARCHES * CHUNKS + CHUNKS - 1])
def test_a_power_cut_after_any_write(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Saves before the cut are whole, what came after is done again, and nothing else is."""
    original, saves = Store.save, 0

    def cut(self: Store, *arguments: object) -> None:
        nonlocal saves
        if saves == after:
            raise KeyboardInterrupt
        saves += 1
        original(self, *arguments)  # type: ignore[arg-type]

    seen = count_searches(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "save", cut)
        with pytest.raises(KeyboardInterrupt):
            assess(tmp_path / "out", "--save_adversarial=true")
    assert not (tmp_path / "out/evaluation.json").exists()
    before = len(seen)
    assess(tmp_path / "out", "--save_adversarial=true", resume=True)
    first_saves = -(-after // (SEARCHES + 1))  # a chunk is saved once before its searches
    assert len(seen) - before == SEARCHES * CHUNKS - (after - first_saves)
    assert_same(straight, tmp_path / "out")


def test_a_signal_stops_within_a_search(
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from evaluated_models import Nearest

    original, passes = Nearest.forward, 0

    def stop(self: Nearest, x: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += 1
        if passes == 40:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, x)

    out = tmp_path / "out"
    flags = [*FLAGS, "--save_adversarial=true", "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(Nearest, "forward", stop)
        assert main(flags) == 128 + signal.SIGTERM
    assert passes == 40  # not one more
    assert f"--out {out} --resume" in caplog.text
    assert main([*flags, "--resume"]) == 0
    assert_same(straight, out)


def test_resume_twice_and_after_the_end(
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "out"
    flags = [*FLAGS, "--save_adversarial=true", "--out", str(out), "--resume"]
    assert main(flags) == 0  # there is nothing yet: it begins
    seen = count_searches(monkeypatch)
    path, torch_here = out / "identity.json", version("torch")
    path.write_text(path.read_text().replace(f'"torch": "{torch_here}"', '"torch": "1.0"'))
    assert "other packages" not in caplog.text
    assert main(flags) == 0
    assert f"(torch 1.0, now {torch_here})" in caplog.text
    assert main(["--out", str(out), "--resume"]) == 0
    assert seen == []
    assert_same(straight, out)


def command(*more: str) -> list[str]:
    return [sys.executable, "-m", "roli_fast.evaluate", *FLAGS, *more]


def environment(**more: str) -> dict[str, str]:
    here = str(Path(__file__).parent)
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **more}


def test_kill_minus_nine_in_the_middle(straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ["--model=evaluated_models:slow", "--save_adversarial=true", "--out", str(out)]
    quick = environment(SLOW_SECONDS="0.05")
    process = subprocess.Popen(command(*flags), env=quick, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 300
        while not (out / "chunks/00001.json").exists():
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    first = (out / "chunks/00000.json").read_bytes()
    assert not (out / "evaluation.json").exists()
    assert main([*FLAGS, *flags, "--resume"]) == 0
    assert (out / "chunks/00000.json").read_bytes() == first
    assert_same(straight, out)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(rank: int, port: int, *more: str) -> "subprocess.Popen[bytes]":
    """As torchrun starts its processes."""
    variables = environment(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    return subprocess.Popen(
        command(*more), env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def both(*more: str) -> list[tuple[int, str, str]]:
    port = free_port()
    processes = [start(rank, port, *more) for rank in (0, 1)]
    ends = []
    for process in processes:
        out, err = process.communicate(timeout=400)
        ends.append((process.returncode, out.decode(), err.decode()))
    return ends


def test_two_processes_find_the_same_flags(straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ends = both("--save_adversarial=true", "--out", str(out))
    assert [end[0] for end in ends] == [0, 0], ends
    assert "union" in ends[0][1] and ends[1][1] == ""
    assert_same(straight, out)
    # one process goes on where two were stopped
    for path in (out / "evaluation.json", out / "chunks/00001.json"):
        path.unlink()
    assert main(["--out", str(out), "--resume"]) == 0
    assert_same(straight, out)


def test_two_processes_with_different_weights_are_stopped(tmp_path: Path) -> None:
    ends = both("--model=evaluated_models:drawn", "--out", str(tmp_path / "out"))
    assert [end[0] for end in ends] == [2, 2], ends
    assert any("the same model and images everywhere" in end[2] for end in ends)


@pytest.fixture
def stopped(straight: Path, tmp_path: Path) -> Path:
    """A folder in which one chunk is missing."""
    out = tmp_path / "out"
    (out / "chunks").mkdir(parents=True)
    for path in straight.rglob("*"):
        if path.is_file() and path.name not in ("evaluation.json", "00002.json"):
            (out / path.relative_to(straight)).write_bytes(path.read_bytes())
    return out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[: len(text) // 2], "00001.json"),
        (lambda _text: "", "00001.json"),
        (lambda _text: "[]", "00001.json"),
        (lambda text: text.replace('"identity": "', '"identity": "0'), "another evaluation"),
        (lambda text: text.replace("pgd-3", "pgd-4"), "other searches"),
        (lambda text: text.replace('"name": "00001"', '"name": "00002"'), "other samples"),
        (lambda text: text.replace('"clean": "1', '"clean": "'), "a flag is missing"),
        (lambda text: text.replace('"clean": "', '"clean": "x'), "flags are 0 and 1"),
        (lambda text: text.replace('"lost": 0', '"lost": "0"'), "`lost` is '0'"),
        (lambda text: text.replace('"forwards": ', '"forwards": 0.'), "`forwards` is 0."),
        (lambda text: text.replace('"notes": [', '"notes": [3'), "are texts"),
        (lambda _text: "[" * 100_000, "nested"),
    ],
    ids=["half", "empty", "list", "identity", "searches", "samples", "short", "letters"]
    + ["lost", "cost", "notes", "nested"],
)
def test_a_foreign_or_damaged_chunk_is_told_and_left_alone(
    stopped: Path, change, words: str
) -> None:  # noqa: ANN001
    path = stopped / "chunks/00001.json"
    path.write_text(change(path.read_text()))
    before = {p: p.read_bytes() for p in stopped.rglob("*.*") if p.name != "run.lock"}
    with pytest.raises(RunDirectoryError, match=r"00001\.json.*Nothing was changed") as caught:
        assess(stopped, "--save_adversarial=true", resume=True)
    assert words in str(caught.value)
    assert before == {p: p.read_bytes() for p in stopped.rglob("*.*") if p.name != "run.lock"}


def test_damaged_images_are_told(stopped: Path) -> None:
    chunk = stopped / "chunks/00001.json"
    tree = json.loads(chunk.read_text())
    tree["found"].pop()
    chunk.write_text(json.dumps(tree))
    (stopped / "chunks/00001.safetensors").write_bytes(b"half")
    with pytest.raises(RunDirectoryError, match=r"00001\.safetensors.*00001\.json.*away"):
        assess(stopped, "--save_adversarial=true", resume=True)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--seed=1"], "another configuration"),
        (["--attacks=pgd-3"], "another configuration"),
        (["--eps=0.05,0.5"], "another configuration"),
        (["--images=80"], "another configuration, another images"),
        (["--model=evaluated_models:slow"], "another configuration"),
    ],
    ids=str,
)
def test_another_evaluation_is_refused(stopped: Path, more: list[str], words: str) -> None:
    with pytest.raises(RunDirectoryError, match=words):
        assess(stopped, "--save_adversarial=true", *more, resume=True)
    with pytest.raises(ConfigError, match="--resume"):
        parse([*FLAGS, "--save_adversarial=true", *more, "--out", str(stopped), "--resume"])


def test_changed_weights_are_refused(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import evaluated_models

    monkeypatch.setattr(evaluated_models, "nearest", evaluated_models.drawn)
    with pytest.raises(RunDirectoryError, match="another model"):
        assess(stopped, "--save_adversarial=true", resume=True)


def ten_classes(root: Path) -> Path:
    return write_folder(root, {f"{s}/{c}": 2 for s in ("train", "test") for c in "0123456789"})


def test_rewritten_images_are_refused_between_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ten_classes(tmp_path / "images")
    more = ["--data=image_folder", f"--data.root={images}", "--images=20", "--chunk=10"]
    original = Store.save

    def cut(self: Store, chunk: Chunk, found: object = None) -> None:
        if chunk.name == "00001":
            raise KeyboardInterrupt
        original(self, chunk, found)  # type: ignore[arg-type]

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


def test_a_damaged_image_is_told_before_anything_is_made(tmp_path: Path) -> None:
    images = ten_classes(tmp_path / "images")
    path = images / "test/5/1.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"test/5/1\.png"):
        assess(tmp_path / "out", "--data=image_folder", f"--data.root={images}", "--images=20")
    assert not (tmp_path / "out").exists()


def test_a_used_folder_needs_resume_and_a_stranger_s_is_refused(
    straight: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunDirectoryError, match="Add --resume"):
        assess(straight, "--save_adversarial=true")
    (tmp_path / "config.yaml").write_text("methods: [roli]\n")
    with pytest.raises(ConfigError, match="an evaluation began"):
        parse([*FLAGS, "--out", str(tmp_path), "--resume"])
    with pytest.raises(RunDirectoryError, match="an evaluation began"):
        assess(tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    with pytest.raises(ConfigError, match="--out DIR"):
        parse([*FLAGS, "--resume"])


def test_a_power_cut_before_the_identity(straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.yaml").write_bytes((straight / "config.yaml").read_bytes())
    with pytest.raises(RunDirectoryError, match="an evaluation began"):
        assess(out, "--save_adversarial=true", "--seed=1", resume=True)
    assert main(["--out", str(out), "--resume"]) == 0
    assert_same(straight, out)


def test_resume_is_not_advised_where_nothing_ran(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunDirectoryError, match=r"exists already.*holds no run: name a new"):
        assess(tmp_path)


def test_an_interrupt_is_the_package_s_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = rows.Search.measure

    def stop(*arguments):  # noqa: ANN002, ANN202
        os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(rows.Search, "measure", stop)
    with pytest.raises(InterruptedRunError, match="SIGINT"):
        assess(tmp_path / "out")

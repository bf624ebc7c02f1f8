"""Finished runs analysed again: what is added, what is kept, and what is refused."""

import json
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from analysed_run import analysed, analysis_of, run_analysed

from roli_fast.analysis.deep import PARTS
from roli_fast.analyze import check_budget, main, parse, run, targets
from roli_fast.errors import ConfigError, InterruptedRunError, RunDirectoryError
from roli_fast.running.lock import RunLock
from roli_fast.train.sweep import Axis, run_sweep

QUICK = ("--finetune.epochs=1", "--data.max_per_class=12", "--analysis_images=20")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of one method, never analysed; do not write into it."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    run_analysed(folder, *QUICK, "--seeds=0,1", "--analysis_images=0")
    return folder


@pytest.fixture
def run_dir(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "run"))


def analyse(*arguments: object) -> str:
    return "".join(run(parse(list(map(str, arguments))), quiet=True))


def test_a_run_is_analysed_as_it_would_have_been(run_dir: Path, tmp_path: Path) -> None:
    run_analysed(tmp_path / "other", *QUICK)
    text = analyse(run_dir, "--seeds", "0")
    assert analysis_of(run_dir)["left_out"]  # a second of training pays for no more
    again = analyse(run_dir, "--seeds", "0", "--images", 20)
    own, other = analysis_of(run_dir), analysis_of(tmp_path / "other")
    assert own.keys() == other.keys()
    assert own["stages"] == other["stages"]
    assert own["calibration"] == other["calibration"]
    assert (run_dir / "report.html").is_file()
    assert not (run_dir / "seed-1/roli/analysis.json").exists()
    for lines in (text, again):
        assert "head norm" in lines
        assert "report.html" in lines


def test_deep_parts_are_added_and_kept(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = run_dir / "seed-0" / "roli"
    analyse(where, "--all", "--images", 9)
    probe, finetune = analysis_of(run_dir)["stages"]
    assert not {"one_step", "head_scale", "kernel"} & set(probe)  # the head alone trains
    for kind in ("clean", "adversarial"):
        step = finetune["one_step"][kind]
        assert (step["train_images"], step["images"]) == (9, 9)
        assert step["first_update"]["optimizer"] == "adamw"
    assert [row["scale"] for row in finetune["head_scale"]] == [0.1, 1.0, 10.0]
    assert finetune["kernel"]["images"] == 9

    def never(*_: object) -> None:
        raise AssertionError("made already")

    made = dict(PARTS)
    for flag, part in made.items():
        monkeypatch.setitem(PARTS, flag, replace(part, make=never))
    analyse(where, "--all")
    monkeypatch.undo()
    analyse(where, "--ft_ratio", "--images", 8, "--again")
    again = analysis_of(run_dir)["stages"][1]
    assert again["one_step"]["clean"]["images"] == 8
    assert again["kernel"] == finetune["kernel"]  # its weights are the same
    assert again["start"] != finetune["start"]


def test_a_stop_keeps_what_is_finished(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = run_dir / "seed-0" / "roli"
    original = PARTS["head_scale"]

    def stopping(start: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return original.make(start)

    stopped = replace(original, make=stopping)
    monkeypatch.setitem(PARTS, "head_scale", stopped)
    with pytest.raises(InterruptedRunError, match="SIGTERM"):
        analyse(where, "--all", "--images", 6)
    stage = analysis_of(run_dir)["stages"][1]
    assert "one_step" in stage
    assert not {"head_scale", "kernel"} & set(stage)
    assert main([str(where), "--kernel", "--images", "6"]) == 0
    assert "kernel" in analysis_of(run_dir)["stages"][1]


def test_which_trainings_are_meant(run_dir: Path) -> None:
    def found(*folders: Path, **chosen: Any) -> list[tuple[int, str]]:
        return [(t.seed, t.method) for t in targets(folders, **chosen)]

    assert found(run_dir) == [(0, "roli"), (1, "roli")]
    assert found(run_dir / "seed-1") == [(1, "roli")]
    assert found(run_dir / "seed-1/roli/stage-1-probe") == [(1, "roli")]
    assert found(run_dir, seeds=(1,)) == [(1, "roli")]
    with pytest.raises(ConfigError, match=r"`--methods`: expected some of: roli, got ranli"):
        found(run_dir, methods=("ranli",))
    with pytest.raises(ConfigError, match=r"`--seeds`: expected some of: 0, 1, got 7"):
        found(run_dir, seeds=(0, 7))
    with pytest.raises(ConfigError, match="seed-S/METHOD"):
        found(run_dir / "tensorboard")
    with pytest.raises(ConfigError, match="`RUN`: expected a folder"):
        found(run_dir / "nothing")


def test_the_cells_of_a_sweep(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    base = analysed(*QUICK, "--analysis_images=0")
    run_sweep(base, [Axis.parse("finetune.optimizer.lr=1e-3,2e-3")], folder, quiet=True)
    assert len(targets([folder])) == 2
    analyse(folder, "--images", 6)
    assert (folder / "report.html").is_file()
    trees = [json.loads(path.read_text()) for path in sorted(folder.rglob("analysis.json"))]
    assert sorted(tree["images"]["test"] for tree in trees) == [0, 6]  # the chosen one's alone


def changed(before: str, after: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        path = run / "config.yaml"
        path.write_text(path.read_text().replace(before, after))

    return change


def without(name: str) -> Callable[[Path], None]:
    return lambda run: (run / name).unlink()


FINETUNED = "seed-0/roli/stage-2-finetune"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            without(f"{FINETUNED}/best.safetensors"),
            ["`RUN`", "a finished run", "best.safetensors", "--resume"],
        ),
        (changed("max_per_class: 12", "max_per_class: 11"), ["another data train images"]),
        (without("environment.json"), ["environment.json", "Put it back"]),
    ],
    ids=["weights", "images", "environment"],
)
def test_a_run_that_is_not_whole_is_refused(
    damage: Any, words: list[str], run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(run_dir)
    assert main([str(run_dir / "seed-0")]) == 2
    assert all(word in caplog.text for word in words), caplog.text


def test_a_kernel_above_the_budget_is_refused(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert main([str(run_dir / "seed-0"), "--kernel", "--images", "9", "--memory", "50k"]) == 2
    assert "`--images`: expected at most" in caplog.text
    assert "N x C = 54" in caplog.text
    enough = re.search(r"--memory (\d+)", caplog.text)
    assert enough
    check_budget(parse(["a", "--kernel", "--images", "9", "--memory", enough[1]]), 3)
    assert not list(run_dir.rglob("analysis.json"))  # told before anything is made


def test_a_run_in_use_is_left_alone(run_dir: Path) -> None:
    with RunLock(run_dir), pytest.raises(RunDirectoryError, match="in use"):
        analyse(run_dir)

"""A run whose files a disk or an editor has damaged: every program names the file, or goes on.

A damage is one file of a small finished run and one change of it, both drawn from a number.
"""

import json
import logging
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from analysed_run import FLAGS

from roli_fast import errors
from roli_fast.analyze.__main__ import main as analyze
from roli_fast.evaluate.__main__ import main as evaluate
from roli_fast.report.__main__ import main as report
from roli_fast.train import loop
from roli_fast.train.__main__ import main as train

VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 10**9, 10**30, 10**400, 1e308, float("nan"), float("inf")),
    *("", "x", "\ud800", [], {}, [[]], [None], {"x": 1}, [1] * 7, "1" * 50),
)
"""Put in the place of a field. JSON writes NaN and Infinity as Python does."""

TEXTS = (b"", b"\0", b"\xff\xfe{", b"[]", b"3", b"null", b'"x"', b"{}", b"[" * 100_000)
TEXTS += (b'{"a": ' * 100_000, b"1" * 5_000, b"\xef\xbb\xbf{}")

Program = Callable[[], int]

READ = ("*.json", "*.jsonl", "*.yaml", "*.npz", "*.safetensors", "run.lock")


def change(data: bytes, name: str, draw: random.Random) -> bytes:
    """A file's bytes, damaged in one of a few ways."""
    way = draw.choice(("field",) * 4 + ("gone", "cut", "flip", "text"))
    if way == "field" and name.endswith((".json", ".jsonl")):
        first, *rest = data.decode().splitlines() if name.endswith("l") else [data.decode()]
        return "\n".join([json.dumps(changed(json.loads(first), draw)), *rest, ""]).encode()
    if way == "field" and name.endswith(".safetensors"):
        size = int.from_bytes(data[:8], "little")
        head = json.loads(data[8 : 8 + size])
        card = head.get("__metadata__") or {}
        for key in card:
            card[key] = json.dumps(changed(json.loads(card[key]), draw))
        text = json.dumps(head).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + size :]
    if way == "field" and name.endswith(".yaml"):
        lines = data.decode().splitlines()
        place = draw.randrange(len(lines))
        field = lines[place].split(":")[0]
        lines[place] = f"{field}: {draw.choice(('null', 'x', '10', '.nan', '[]', '{}', '*a', '-'))}"
        return "\n".join(lines).encode()
    if way == "gone":
        return b""
    if way == "cut":
        return data[: draw.randrange(len(data) + 1)]
    if way == "flip" and data:
        flipped = bytearray(data)
        for _ in range(draw.choice((1, 8))):
            flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        return bytes(flipped)
    return draw.choice(TEXTS)


def changed(tree: Any, draw: random.Random) -> Any:
    """A tree with another value in one place, or without the place."""
    if not isinstance(tree, (dict, list)) or not tree:
        return draw.choice(VALUES)
    key = draw.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
    inner = isinstance(tree[key], (dict, list)) and draw.random() < 0.85
    if not inner and draw.random() < 0.2:
        del tree[key]
    else:
        tree[key] = changed(tree[key], draw) if inner else draw.choice(VALUES)
    return tree


def programs(run: Path, whole: Path, file: str) -> Iterator[tuple[str, Program]]:
    """What reads `file` of a run."""
    model = ["--model", str(run / "seed-0" / "roli"), "--attacks=pgd-1", "--images=4"]
    yield "report", lambda: report([str(run)])
    yield "compare", lambda: report([str(whole), str(run), "--out", str(run / "both.html")])
    if file.startswith("evaluation"):
        yield "go on", lambda: evaluate(["--out", str(run / "evaluation"), "--resume"])
        return
    if file.endswith(("config.yaml", ".safetensors", "result.json")):
        yield "evaluate", lambda: evaluate([*model, "--out", str(run / "new")])
    if (run / "summary.json").exists():
        yield "analyze", lambda: analyze([str(run)])
    yield "train", lambda: train(["--run_dir", str(run), "--resume"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with an evaluation in it."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train(["--run_dir", str(run), *FLAGS, "--methods=roli,ranli", "--report=true"]) == 0
    model = ["--model", str(run / "seed-0" / "roli"), "--attacks=pgd-1", "--images=6"]
    assert evaluate([*model, "--out", str(run / "evaluation")]) == 0
    return run


@pytest.fixture(scope="module")
def begun(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in its second stage."""
    run, update = tmp_path_factory.mktemp("begun") / "run", loop.StageLoop._update
    seen: list[int] = []

    def stop(self: loop.StageLoop, epoch: int, batch: Any) -> Any:
        seen.append(epoch)
        if seen[-2:] == [0, 1]:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, epoch, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.StageLoop, "_update", stop)
        assert train(["--run_dir", str(run), *FLAGS]) == 128 + signal.SIGTERM
    return run


def raw(run: Path, file: Path, whole: Path, told: Callable[[], str]) -> list[str]:
    """Programs that ended on something else than an error of ours that names the file."""
    found = []
    for name, program in programs(run, whole, file.relative_to(run).as_posix()):
        try:
            status = program()
        except Exception as error:  # what must not happen
            found.append(f"{name}: {type(error).__name__}: {error}"[:200])
            continue
        text = told()
        if status == 2 and file.name not in text:
            found.append(f"{name} names no {file.name}: {text[-300:]}")
        for line in text.splitlines():
            kind = line.split(": ")[1] if line.startswith("no ") and ": " in line else ""
            if kind.endswith("Error") and not hasattr(errors, kind):
                found.append(f"{name}: {line}"[:200])
    return found


def try_damage(
    number: int, whole: Path, folder: Path, told: Callable[[], str], files: tuple[str, ...] = READ
) -> list[str]:
    """One damage of a copy of `whole`; what is wrong with how the programs take it."""
    draw = random.Random(number)
    run = folder / f"run-{number}"
    shutil.copytree(whole, run)
    found = sorted(path for pattern in files for path in run.rglob(pattern))
    file = draw.choice(found)
    file.write_bytes(change(file.read_bytes(), file.name, draw))
    problems = raw(run, file, whole, told)
    shutil.rmtree(run)
    return [f"{number} {file.relative_to(run)}: {text}" for text in problems]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What was logged and printed since the last call."""
    caplog.set_level(logging.INFO)

    def read() -> str:
        out = capsys.readouterr()
        text = "\n".join([*caplog.messages, out.out, out.err])
        caplog.clear()
        return text

    return read


def test_few(whole: Path, tmp_path: Path, told: Callable[[], str]) -> None:
    found = [text for number in range(3) for text in try_damage(number, whole, tmp_path, told)]
    assert found == []

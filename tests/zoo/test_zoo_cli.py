"""`python -m roli_fast.zoo`: what a person sees, and that a run can use what it fetched."""

import hashlib
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from file_server import CONTENT, FileServer
from tiny_models import SMALL, tiny

from roli_fast.models import Model, create
from roli_fast.zoo import ZOO
from roli_fast.zoo.__main__ import main

NAME = "ares_vit_b"
FILE = ZOO[NAME].file
SHA = hashlib.sha256(CONTENT).hexdigest()

Text = pytest.CaptureFixture[str]


@pytest.fixture
def offer(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function of changes to the entry that the server then offers."""

    def change(**changes: Any) -> FileServer:
        entry = replace(ZOO[NAME], url=f"http://127.0.0.1:{server.port}/{FILE}", **changes)
        monkeypatch.setitem(ZOO, NAME, entry)
        return server

    server.name = FILE
    return change


def test_list(capsys: Text, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / FILE).touch()
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split() for line in lines[1 : len(ZOO) + 1]}
    assert set(rows) == set(ZOO) and rows[NAME][-1] == "yes" and rows["ares_swin_b"][-1] == "no"
    assert rows["ares_swin_b"][-3:-1] == ["76.6", "57.3"]
    assert "1,000 ImageNet validation images" in "\n".join(lines)
    assert str(tmp_path / "weights") in lines[-1]


def test_get_without_a_published_sum_says_so(offer: Any, capsys: Text, tmp_path: Path) -> None:
    offer()
    assert main(["get", NAME]) == 0
    seen = capsys.readouterr()
    assert f"sha256 {SHA}" in seen.out and "nothing vouches for these bytes" in seen.out
    assert f"kept in {FILE}.sha256; later checks compare with it" in seen.out
    assert f"--model.name vit_base_patch16_224 --model.weights zoo:{NAME}" in seen.out
    assert "100%" in seen.err and FILE.removesuffix(".pth") in seen.err  # the bar
    assert (tmp_path / "weights" / FILE).read_bytes() == CONTENT
    assert main(["get", NAME]) == 0
    seen = capsys.readouterr()
    assert "was there already" in seen.out and "equals what an earlier fetch computed" in seen.out
    assert not seen.err and "http" not in seen.out


@pytest.mark.parametrize(
    ("known", "said"),
    [(SHA, "It equals the publisher's."), (SHA[:8], "Compared with the first 8 published digits")],
)
def test_get_with_a_published_sum(offer: Any, capsys: Text, known: str, said: str) -> None:
    offer(sha256=known)
    assert main(["get", NAME]) == 0
    assert said in capsys.readouterr().out


def test_get_from_a_mirror(offer: Any, capsys: Text, tmp_path: Path) -> None:
    server = offer()
    assert main(["get", NAME, "--url", f"http://127.0.0.1:{server.port}/mirror/{FILE}"]) == 0
    assert server.seen[0][0] == f"/mirror/{FILE}"
    assert (tmp_path / "weights" / FILE).is_file()


def test_a_mistake_is_one_line_and_status_2(offer: Any, capsys: Text, tmp_path: Path) -> None:
    offer(sha256="0" * 64)
    assert main(["get", NAME]) == 2
    error = capsys.readouterr().err
    assert "error: `sha256`: expected 000" in error and "Traceback" not in error
    assert not (tmp_path / "weights" / FILE).exists()
    assert main(["get", "ares_vit_bb"]) == 2
    assert "Similar: ares_vit_b" in capsys.readouterr().err


def test_ctrl_c_leaves_nothing(
    offer: Any, capsys: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer()

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("shutil.copyfileobj", stop)
        assert main(["get", NAME]) == 130
    assert "nothing was kept" in capsys.readouterr().err
    assert not list((tmp_path / "weights").iterdir())
    assert main(["get", NAME]) == 0


def test_a_fetched_file_serves_a_model(offer: Any, capsys: Text) -> None:
    raw = io.BytesIO()
    torch.save({"model": tiny(seed=3).backbone.state_dict()}, raw)
    offer().content = raw.getvalue()
    assert main(["get", NAME]) == 0
    config = Model(
        "vit_base_patch16_224", options=SMALL["vit_tiny_patch16_224"], weights=f"zoo:{NAME}"
    )
    model = create(config, num_classes=7)
    theirs = tiny(seed=3).backbone.state_dict()
    own = model.backbone.state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in theirs if "head" not in name)
    assert model.card["mean"] == [0.485, 0.456, 0.406]


def test_the_command_as_people_type_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "roli_fast.zoo", "get"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "required: name" in done.stderr

"""`zoo list` and `get`: a download is whole or absent, and a run can use what it fetched."""

import hashlib
import io
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import SMALL, tiny

from roli_fast.models import Model, create
from roli_fast.zoo import ZOO
from roli_fast.zoo.__main__ import main

NAME = "ares_vit_b"
FILE = ZOO[NAME].file

Text = pytest.CaptureFixture[str]


def weights() -> bytes:
    """A weight file as torch.save writes it."""
    raw = io.BytesIO()
    torch.save({"model": tiny(seed=3).backbone.state_dict()}, raw)
    return raw.getvalue()


CONTENT = weights()
SHA = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Gives out `content` at every address, or answers with another `status`."""

    content = CONTENT
    status = 200
    seen: list[str] = []  # noqa: RUF012 - set anew by the fixture

    class Handler(BaseHTTPRequestHandler):
        server: "Server"  # type: ignore[assignment]

        def do_GET(self) -> None:  # noqa: N802
            self.server.seen.append(self.path)
            if self.server.status != 200:
                self.send_error(self.server.status)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(self.server.content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """It offers the entry; the cache is the test's own, and no proxy is between."""
    monkeypatch.setenv("ROLI_FAST_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with Server(("127.0.0.1", 0), Server.Handler) as running:
        running.seen = []
        url = f"http://127.0.0.1:{running.server_port}/{FILE}"
        monkeypatch.setitem(ZOO, NAME, replace(ZOO[NAME], url=url))
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights" / FILE


def test_list(server: Server, path: Path, capsys: Text) -> None:
    path.parent.mkdir()
    path.touch()
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split() for line in lines[1 : len(ZOO) + 1]}
    assert set(rows) == set(ZOO) and rows[NAME][-1] == "yes" and rows["ares_swin_b"][-1] == "no"
    assert rows["ares_swin_b"][4:-1] == ["76.6", "57.3", "AutoAttack", "address", "alone"]
    assert rows["salman_resnet18_linf_eps4.0"][-3:] == ["address,", "sha256", "no"]
    assert "1,000 ImageNet validation images" in "\n".join(lines)
    assert str(path.parent) in lines[-1]
    assert main(["list", "xcit"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:4]]
    assert names == ["debenedetti_xcit_s12", "debenedetti_xcit_m12", "debenedetti_xcit_l12"]


def test_a_page_of_files_is_fetched_by_hand(server: Server, path: Path, capsys: Text) -> None:
    assert main(["get", "mimir_vit_b_eps4"]) == 2
    error = capsys.readouterr().err
    assert (
        "drive/folders/" in error and f"put it at {path.parent / 'mimir_vit_b_eps4.pth'}" in error
    )


def test_a_fetched_file_serves_a_model(server: Server, path: Path, capsys: Text) -> None:
    assert main(["get", NAME]) == 0
    seen = capsys.readouterr()
    assert f"sha256 {SHA}" in seen.out and "nothing vouches for these bytes" in seen.out
    assert f"--model.name vit_base_patch16_224 --model.weights zoo:{NAME}" in seen.out
    assert "100%" in seen.err  # the bar
    assert path.read_bytes() == CONTENT and [p.name for p in path.parent.iterdir()] == [FILE]
    assert main(["get", NAME]) == 0 and len(server.seen) == 1  # it was there already
    options = SMALL["vit_tiny_patch16_224"]
    config = Model("vit_base_patch16_224", options=options, weights=f"zoo:{NAME}")
    model = create(config, num_classes=7)
    theirs, own = tiny(seed=3).backbone.state_dict(), model.backbone.state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in theirs if "head" not in name)
    assert model.card["mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize(
    ("known", "said"),
    [(SHA.upper(), "the publisher's sha256"), (SHA[:8], "the publisher's first 8 digits")],
)
def test_a_published_sum_is_compared(
    server: Server, path: Path, capsys: Text, known: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ZOO, NAME, replace(ZOO[NAME], sha256=known))
    mirror = f"http://127.0.0.1:{server.server_port}/mirror/{FILE}"
    assert main(["get", NAME, "--url", mirror]) == 0 and server.seen == [f"/mirror/{FILE}"]
    assert said in capsys.readouterr().out
    path.write_bytes(CONTENT[:-1])  # damaged since: the user's to delete
    assert main(["get", NAME]) == 2 and path.exists()
    assert f"`sha256`: expected {known}" in capsys.readouterr().err
    path.unlink()
    server.content = CONTENT[:-1]
    assert main(["get", NAME]) == 2 and not list(path.parent.iterdir())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"content": b"<!DOCTYPE html><html>log in</html>"}, "an HTML page"),
        ({"content": CONTENT[: len(CONTENT) // 2]}, "weights at"),  # it breaks off
        ({"status": 404}, "404.*--url"),
    ],
)
def test_what_is_no_whole_weight_file_leaves_nothing(
    server: Server, path: Path, capsys: Text, answer: dict[str, Any], words: str
) -> None:
    for name, value in answer.items():
        setattr(server, name, value)
    assert main(["get", NAME]) == 2
    error = capsys.readouterr().err
    assert "error: `url`" in error and "Traceback" not in error
    assert re.search(words, error) and not list(path.parent.iterdir())
    server.content, server.status = CONTENT, 200
    assert main(["get", NAME]) == 0 and path.read_bytes() == CONTENT


def test_mistakes_are_one_line_and_status_2(
    server: Server, path: Path, capsys: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["get", "ares_vit_bb"]) == 2
    assert "Similar: ares_vit_b" in capsys.readouterr().err
    assert main(["get", NAME, "--url", "http://127.0.0.1:9/w.pth"]) == 2
    assert "refused" in (error := capsys.readouterr().err) and "the proxy (https_proxy)" in error

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.hub.download_url_to_file", stop)
    assert main(["get", NAME]) == 130 and not list(path.parent.iterdir())
    assert "nothing was kept" in capsys.readouterr().err

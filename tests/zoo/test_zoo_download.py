"""A download is whole or absent, and only a file of weights is kept."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from file_server import CONTENT, FileServer, weights

from roli_fast.errors import DownloadError
from roli_fast.zoo import Fetched, fetch

SHA = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2
OTHER = weights(2.0)
PAGE = b"<!DOCTYPE html><html>log in</html>"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights" / "w.pth"


def files(path: Path) -> set[str]:
    return set(os.listdir(path.parent))


def test_it_arrives_whole_with_its_sum_beside_it(
    server: FileServer, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch(server.url, path) == Fetched(path, SHA, None, new=True)
    assert path.read_bytes() == CONTENT and files(path) == {"w.pth", "w.pth.sha256"}
    assert (path.parent / "w.pth.sha256").read_text() == f"{SHA}  w.pth\n"
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    assert not capsys.readouterr().err


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    ("known", "checked"),
    [(SHA, "published"), (SHA.upper(), "published"), (SHA[:8], "first 8 published digits")],
)
def test_a_known_sum_is_compared(server: FileServer, path: Path, known: str, checked: str) -> None:
    assert fetch(server.url, path, sha256=known).checked == checked
    assert fetch(server.url, path, sha256=known) == Fetched(path, SHA, checked, new=False)
    assert len(server.seen) == 1


def test_another_sum_leaves_nothing(server: FileServer, path: Path) -> None:
    for known in ("0" * 64, "00000000"):
        with pytest.raises(DownloadError, match=f"`sha256`: expected {known}.*got {SHA}.*Nothing"):
            fetch(server.url, path, sha256=known)
        assert files(path) == set()


def mixture() -> bytes:
    """The first half of one file and the second of another, of the same size."""
    assert len(OTHER) == len(CONTENT)
    return OTHER[:HALF] + CONTENT[HALF:]


@pytest.mark.parametrize(
    "answer",
    [
        {"content": b""},
        {"status": 204, "content": b"", "length": None},
        {"content": PAGE},
        {"content": PAGE, "kind": "text/html; charset=utf-8"},
        {"kind": "text/html"},
        {"status": 206},
        {"status": 206, "content": CONTENT[HALF:]},
        {"content": CONTENT[HALF:]},
        {"content": CONTENT[:HALF]},
        {"content": CONTENT[:HALF], "length": None},
        {"content": mixture()},
        {"content": bytes(len(CONTENT))},
        {"cut": HALF},
        {"cut": 0},
        {"length": 10**9},
        {"length": HALF},
        {"content": b"version https://git-lfs.github.com/spec/v1\n"},
    ],
    ids=lambda answer: " ".join(answer),
)
def test_what_is_no_whole_weight_file_leaves_nothing(
    server: FileServer, path: Path, answer: dict[str, Any]
) -> None:
    for name, value in answer.items():
        setattr(server, name, value)
    with pytest.raises(DownloadError, match="`url`"):
        fetch(server.url, path)
    assert files(path) == set()
    server.content, server.kind, server.status = CONTENT, "application/octet-stream", 200
    server.cut, server.length = None, -1
    assert fetch(server.url, path).sha256 == SHA


def test_a_second_try_takes_no_byte_of_the_first(server: FileServer, path: Path) -> None:
    """A server that ignores If-Range would send the rest of another version."""
    server.cut = HALF
    with pytest.raises(DownloadError, match=f"end after {HALF:,} of {len(CONTENT):,} bytes"):
        fetch(server.url, path)
    server.cut, server.content = None, OTHER
    assert fetch(server.url, path).new and path.read_bytes() == OTHER
    assert [asked for _, asked in server.seen] == [None, None]


class TestFaults:
    @pytest.mark.parametrize("status", [403, 404, 416, 500])
    def test_http_errors(self, server: FileServer, path: Path, status: int) -> None:
        server.status = status
        with pytest.raises(DownloadError, match=f"`url`.*HTTP status {status} for .*--url"):
            fetch(server.url, path)
        assert files(path) == set()

    def test_no_server(self, path: Path) -> None:
        with FileServer(CONTENT) as closed:
            url = closed.url
        with pytest.raises(DownloadError, match="refused.*Check the network and the proxy"):
            fetch(url, path)
        assert files(path) == set()

    @pytest.mark.parametrize("url", ["", "w.pth", "/etc/passwd", "file:///etc/passwd", "ftp://a/b"])
    def test_other_addresses(self, path: Path, url: str) -> None:
        with pytest.raises(DownloadError, match="`url`: expected an http or https address"):
            fetch(url, path)

    @pytest.mark.parametrize("url", ["http://", "http://a b/c", "http://[x/"])
    def test_addresses_that_are_none(self, path: Path, url: str) -> None:
        with pytest.raises(DownloadError, match="`url`"):
            fetch(url, path)

    def test_a_size_that_is_not_told(self, server: FileServer, path: Path) -> None:
        server.length = None
        assert fetch(server.url, path).sha256 == SHA

    def test_a_proxy_is_asked(
        self, server: FileServer, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("http_proxy", server.url.removesuffix("/w.pth"))
        assert fetch("http://nowhere.invalid/w.pth", path).sha256 == SHA
        assert server.seen[0][0] == "http://nowhere.invalid/w.pth"


class TestLater:
    def test_a_file_that_is_here_is_compared_with_the_stored_sum(
        self, server: FileServer, path: Path
    ) -> None:
        fetch(server.url, path)
        assert fetch(server.url, path) == Fetched(path, SHA, "stored", new=False)
        path.write_bytes(CONTENT[:-1])
        with pytest.raises(DownloadError, match="an earlier fetch's.*Delete it and fetch it again"):
            fetch(server.url, path)
        assert path.exists()  # the user's to delete

    def test_a_file_put_here_by_hand_gets_a_sum(self, server: FileServer, path: Path) -> None:
        path.parent.mkdir()
        path.write_bytes(PAGE)
        with pytest.raises(DownloadError, match=r"an HTML page\..*Delete it and fetch it again"):
            fetch(server.url, path)
        assert files(path) == {"w.pth"}
        path.write_bytes(CONTENT)
        assert fetch(server.url, path) == Fetched(path, SHA, None, new=False)
        assert fetch(server.url, path).checked == "stored"
        assert not server.seen

    def test_another_file_at_the_old_address_is_told(self, server: FileServer, path: Path) -> None:
        fetch(server.url, path)
        path.unlink()
        server.content = OTHER
        with pytest.raises(DownloadError, match=r"earlier fetch's.*w\.pth\.sha256' to accept"):
            fetch(server.url, path)
        assert files(path) == {"w.pth.sha256"}

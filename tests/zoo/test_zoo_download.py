"""A download is whole or absent, resumes by range, and is checked."""

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from file_server import CONTENT, FileServer

from roli_fast.errors import DownloadError
from roli_fast.zoo import Fetched, fetch
from roli_fast.zoo.part import Part

SHA = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights" / "w.pth"


def files(path: Path) -> set[str]:
    """What lies beside `path`, the lock left out."""
    return {name for name in os.listdir(path.parent) if not name.endswith(".lock")}


def interrupted(server: FileServer, path: Path, cut: int = HALF) -> None:
    """A first try that breaks off after `cut` bytes."""
    server.cut = cut
    with pytest.raises(DownloadError, match=rf"{cut:,} bytes are kept: run the command again"):
        fetch(server.url, path)
    server.cut = None
    assert not path.exists() and part(path).stat().st_size == cut


def part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def test_it_arrives_whole_with_its_sum_beside_it(server: FileServer, path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    found = fetch(server.url, path, progress=lambda done, total: told.append((done, total)))
    assert found == Fetched(path, SHA, None, new=True)
    assert path.read_bytes() == CONTENT and files(path) == {"w.pth", "w.pth.sha256"}
    assert (path.parent / "w.pth.sha256").read_text() == f"{SHA}  w.pth\n"
    assert told[0] == (0, len(CONTENT)) and told[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


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


class TestResuming:
    def test_only_the_rest_is_sent(self, server: FileServer, path: Path) -> None:
        interrupted(server, path)
        told: list[int] = []
        found = fetch(server.url, path, sha256=SHA, progress=lambda done, _: told.append(done))
        assert found.new and path.read_bytes() == CONTENT and told[0] == HALF
        assert [seen[1:] for seen in server.seen] == [(None, None), (f"bytes={HALF}-", '"v1"')]
        assert files(path) == {"w.pth", "w.pth.sha256"}

    def test_twice(self, server: FileServer, path: Path) -> None:
        interrupted(server, path, cut=1000)
        server.cut = 500
        with pytest.raises(DownloadError, match="end after 1,500 of 1,280,000 bytes"):
            fetch(server.url, path)
        server.cut = None
        assert fetch(server.url, path).sha256 == SHA

    def test_the_date_will_do(self, server: FileServer, path: Path) -> None:
        server.tag, server.date = 'W/"weak"', "Sat, 01 Jan 2022 00:00:00 GMT"
        interrupted(server, path)
        assert fetch(server.url, path).sha256 == SHA
        assert server.seen[1][1:] == (f"bytes={HALF}-", server.date)

    def test_another_version_starts_over(self, server: FileServer, path: Path) -> None:
        interrupted(server, path)
        server.tag, server.content = '"v2"', CONTENT[::-1]
        assert fetch(server.url, path).sha256 == hashlib.sha256(CONTENT[::-1]).hexdigest()

    def test_a_shorter_new_version(self, server: FileServer, path: Path) -> None:
        interrupted(server, path)
        server.tag, server.content = '"v2"', CONTENT[:100]
        fetch(server.url, path)
        assert path.read_bytes() == CONTENT[:100]

    def test_a_server_without_ranges_starts_over(self, server: FileServer, path: Path) -> None:
        interrupted(server, path)
        server.ranges = False
        assert fetch(server.url, path).sha256 == SHA

    def test_a_server_without_versions_starts_over(self, server: FileServer, path: Path) -> None:
        server.tag = None
        interrupted(server, path)
        assert fetch(server.url, path).sha256 == SHA
        assert server.seen[1][1] is None

    def test_another_address_starts_over(self, server: FileServer, path: Path) -> None:
        interrupted(server, path)
        assert fetch(server.url.replace("/w", "/mirror/w"), path).sha256 == SHA
        assert server.seen[1] == ("/mirror/w.pth", None, None)

    def test_stopped_before_the_rename(self, server: FileServer, path: Path) -> None:
        interrupted(server, path)
        part(path).write_bytes(CONTENT)
        assert fetch(server.url, path, sha256=SHA).new
        assert len(server.seen) == 1  # nothing was left to ask for

    def test_a_part_that_is_too_long(self, server: FileServer, path: Path) -> None:
        interrupted(server, path)
        part(path).write_bytes(CONTENT + b"more")
        assert fetch(server.url, path).sha256 == SHA

    def test_a_part_of_unknown_origin(self, server: FileServer, path: Path) -> None:
        interrupted(server, path)
        for note in ("", "[1]", "{}", "{not json"):
            part(path).write_bytes(b"other" * 10)
            part(path).with_name(".w.pth.part.json").write_text(note)
            assert fetch(server.url, path).sha256 == SHA
            path.unlink()

    def test_a_damaged_part_is_not_kept_for_ever(self, server: FileServer, path: Path) -> None:
        interrupted(server, path)
        part(path).write_bytes(bytes(HALF))
        with pytest.raises(DownloadError, match="`sha256`"):
            fetch(server.url, path, sha256=SHA)
        assert files(path) == set()
        assert fetch(server.url, path, sha256=SHA).new

    def test_killed_when_another_version_begins(
        self, server: FileServer, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The note says v2 already; the bytes of v1 must not pass for its beginning."""
        interrupted(server, path)
        server.tag, server.content = '"v2"', CONTENT[::-1]
        describe = Part.describe

        def killed(part: Part, *note: Any) -> None:
            describe(part, *note)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(Part, "describe", killed)
            fetch(server.url, path)
        fetch(server.url, path)
        assert path.read_bytes() == CONTENT[::-1]

    @pytest.mark.parametrize("shift", [-1, 1])
    def test_another_range_than_asked_is_refused(
        self, server: FileServer, path: Path, shift: int
    ) -> None:
        interrupted(server, path)
        server.shift = shift
        with pytest.raises(DownloadError, match=f"bytes from {HALF} on of .*bytes {HALF + shift}-"):
            fetch(server.url, path)
        server.shift = 0
        assert fetch(server.url, path).sha256 == SHA

    def test_a_range_that_the_server_refuses(self, server: FileServer, path: Path) -> None:
        interrupted(server, path)
        server.content = CONTENT[:10]  # and the same tag
        with pytest.raises(DownloadError, match=r"status 416.*The part was deleted: run the comm"):
            fetch(server.url, path)
        fetch(server.url, path)
        assert path.read_bytes() == CONTENT[:10]


class TestFaults:
    @pytest.mark.parametrize("status", [403, 404, 500])
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
        server.length = False
        assert fetch(server.url, path).sha256 == SHA

    def test_a_second_fetch_at_the_same_time(self, server: FileServer, path: Path) -> None:
        path.parent.mkdir()
        with open(path.with_name(".w.pth.lock"), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(DownloadError, match="another process that is fetching it"):
                fetch(server.url, path)
        assert not server.seen
        assert fetch(server.url, path).new

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
        path.write_bytes(CONTENT)
        assert fetch(server.url, path) == Fetched(path, SHA, None, new=False)
        assert fetch(server.url, path).checked == "stored"
        assert not server.seen

    def test_another_file_at_the_old_address_is_told(self, server: FileServer, path: Path) -> None:
        fetch(server.url, path)
        path.unlink()
        server.content = CONTENT[::-1]
        with pytest.raises(DownloadError, match=r"earlier fetch's.*w\.pth\.sha256' to accept"):
            fetch(server.url, path)
        assert files(path) == {"w.pth.sha256"}


def test_the_note_says_what_the_part_is(server: FileServer, path: Path) -> None:
    interrupted(server, path)
    note = json.loads(path.with_name(".w.pth.part.json").read_text())
    assert note == {"url": server.url, "version": '"v1"', "total": len(CONTENT)}

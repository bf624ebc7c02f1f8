"""A download that is whole or absent: it resumes, checks the sha256, and renames at the end."""

import contextlib
import hashlib
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roli_fast.errors import DownloadError, describe
from roli_fast.files import commit, write_bytes
from roli_fast.zoo.part import Part

CHUNK = 1 << 18
TIMEOUT = 60  # seconds without a byte
AGENT = "roli_fast"  # some servers refuse Python's own name

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are here and the bytes of the whole file, where that is known."""


@dataclass(frozen=True)
class Fetched:
    """A file that is here.

    Args:
        path: where.
        sha256: computed from its bytes.
        checked: what the sha256 was compared with: "published" (all 64 digits), "first N
            published digits", "stored" (what an earlier fetch computed), or None: with nothing.
        new: whether bytes were transferred.
    """

    path: Path
    sha256: str
    checked: str | None
    new: bool


def fetch(
    url: str, path: Path, *, sha256: str | None = None, progress: Progress | None = None
) -> Fetched:
    """Bring `url` to `path`, resuming what an earlier call left, unless it is there already.

    Bytes collect in a hidden .part file beside `path`. The computed sha256 is stored in
    `path`.sha256 in the format of sha256sum, and what comes later is compared with it. Proxies
    are urllib's (http_proxy, https_proxy, no_proxy).

    Args:
        url: http or https address.
        path: the final place.
        sha256: what the publisher tells of it, all 64 hex digits or the first ones.
        progress: told of every chunk.

    Raises:
        DownloadError: no connection, an HTTP error, a transfer that broke off (what arrived is
            kept for the next call), or a sha256 that differs (nothing new is kept).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        if path.is_file():
            digest = _digest(path)
            checked = _check(digest, sha256, path, f"'{path}'", "Delete it and fetch it again.")
            _store(path, digest)
            return Fetched(path, digest, checked, new=False)
        part = Part(path.with_name(f".{path.name}.part"))
        _transfer(url, part, progress or (lambda _done, _total: None))
        digest = _digest(part.path)
        try:
            fix = "Nothing was kept: the file at this address is not the one that was expected."
            checked = _check(digest, sha256, path, url, fix)
        except DownloadError:
            part.drop()
            raise
        _store(path, digest)
        commit(part.path, path)
        part.drop()
        return Fetched(path, digest, checked, new=True)


def stored_sha256(path: Path) -> Path:
    """The file that keeps the computed sha256 of `path`."""
    return path.with_name(f"{path.name}.sha256")


def _store(path: Path, digest: str) -> None:
    write_bytes(stored_sha256(path), f"{digest}  {path.name}\n".encode())


def _check(digest: str, published: str | None, path: Path, where: str, fix: str) -> str | None:
    """Compare with all that is known of the file; says with what."""
    if published and not digest.startswith(published.lower()):
        raise DownloadError(describe("sha256", f"{published} (published) of {where}", digest, fix))
    beside = stored_sha256(path)
    words = beside.read_text().split() if beside.is_file() else []
    if words and words[0] != digest:
        fix += f" Delete '{beside}' to accept another file."
        expected = f"{words[0]} (an earlier fetch's) of {where}"
        raise DownloadError(describe("sha256", expected, digest, fix))
    if published:
        whole = len(published) == len(digest)
        return "published" if whole else f"first {len(published)} published digits"
    return "stored" if words else None


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _transfer(url: str, part: Part, progress: Progress) -> None:
    """Append to `part` until it is whole."""
    start = part.usable(url)
    if start and start == part.total:  # stopped between the last byte and the rename
        return
    with _explained(url, part), _open(url, start, part.version) as reply:
        start, total = _place(reply, start, url)
        if not start:
            part.drop()  # before the note changes: old bytes must not pass for the new version's
        part.describe(url, _version(reply), total)
        with open(part.path, "r+b" if start else "wb") as file:
            file.seek(start)
            file.truncate()
            progress(start, total)
            while chunk := reply.read(CHUNK):
                file.write(chunk)
                progress(file.tell(), total)
    if total is not None and part.size != total:
        raise DownloadError(_broken(url, part, f"an end after {part.size:,} of {total:,} bytes"))


def _open(url: str, start: int, version: str | None) -> Any:
    """The server's answer, from byte `start` on if the file is still that version."""
    headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"}
    if start and version:
        headers |= {"Range": f"bytes={start}-", "If-Range": version}
    if not re.match(r"https?://", url):
        raise DownloadError(describe("url", "an http or https address", repr(url)))
    request = urllib.request.Request(url, headers=headers)
    opener = urllib.request.build_opener()  # reads the proxies anew, unlike urlopen
    return opener.open(request, timeout=TIMEOUT)


def _version(reply: Any) -> str | None:
    """What If-Range accepts: a strong tag, else the date."""
    tag = reply.headers.get("ETag") or ""
    return tag if tag and not tag.startswith("W/") else reply.headers.get("Last-Modified")


def _place(reply: Any, asked: int, url: str) -> tuple[int, int | None]:
    """(where the sent bytes begin, size of the whole file)."""
    if reply.status != 206:
        length = reply.headers.get("Content-Length")
        return 0, int(length) if length else None
    sent = reply.headers.get("Content-Range") or ""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", sent)
    if not match or int(match[1]) != asked:
        raise DownloadError(describe("url", f"the bytes from {asked} on of {url}", repr(sent)))
    return asked, None if match[2] == "*" else int(match[2])


@contextlib.contextmanager
def _explained(url: str, part: Part) -> Iterator[None]:
    """Turn what a connection can raise into one error that says what is left and what to do."""
    try:
        yield
    except DownloadError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the part does not fit the server's file
            part.drop()
            fix = "The part was deleted: run the command again."
        elif error.code in (401, 403, 404, 410):
            fix = "The publisher may have moved it: give another address with --url."
        else:
            fix = "Try again later, or give another address with --url."
        expected = "a file that the server gives out"
        got = f"HTTP status {error.code} for {url}"
        raise DownloadError(describe("url", expected, got, fix)) from error
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise DownloadError(_broken(url, part, str(reason))) from error


def _broken(url: str, part: Part, got: str) -> str:
    if part.size:
        fix = f"{part.size:,} bytes are kept: run the command again to go on."
    else:
        fix = "Check the network and the proxy (https_proxy), or give a mirror with --url."
    return describe("url", f"the whole file at {url}", got, fix)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Refuse a second download of one file at the same time, where the system has locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(path.with_name(f".{path.name}.lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            fix = "Wait for it, or stop it: what it got is kept."
            got = "another process that is fetching it"
            raise DownloadError(describe("path", f"'{path}' for itself", got, fix)) from error
        yield

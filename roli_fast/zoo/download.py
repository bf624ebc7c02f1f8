"""A download that is whole or absent: into a fresh file, checked, renamed at the end."""

import contextlib
import hashlib
import http.client
import re
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from roli_fast.errors import CheckpointError, DownloadError, describe
from roli_fast.files import commit, read_tensors, write_bytes

TIMEOUT = 60  # seconds without a byte


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


def fetch(url: str, path: Path, *, sha256: str | None = None, quiet: bool = True) -> Fetched:
    """Bring `url` to `path` unless it is there already; what is kept can be read as weights.

    The computed sha256 is stored in `path`.sha256 in the format of sha256sum, and what comes later
    is compared with it. Proxies are urllib's (http_proxy, https_proxy, no_proxy).

    Args:
        url: http or https address.
        path: the final place.
        sha256: what the publisher tells of it, all 64 hex digits or the first ones.
        quiet: no progress bar.

    Raises:
        DownloadError: no connection, an HTTP error, a transfer that broke off, a sha256 that
            differs, or no file of weights; nothing new is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        where, fix = f"'{path}'", "Delete it and fetch it again."
        return _checked(path, path, sha256, where, fix, new=False)
    # a folder of its own: the suffix says how the file is read, and two may fetch at once
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as folder:
        fresh = Path(folder) / path.name
        _transfer(url, fresh, quiet)
        fix = "Nothing was kept: the file at this address is not the one that was expected."
        found = _checked(fresh, path, sha256, url, fix, new=True)
        commit(fresh, path)
        return found


def stored_sha256(path: Path) -> Path:
    """The file that keeps the computed sha256 of `path`."""
    return path.with_name(f"{path.name}.sha256")


def _checked(  # noqa: PLR0913 - what a check compares
    file: Path, path: Path, published: str | None, where: str, fix: str, *, new: bool
) -> Fetched:
    """Compare `file`, which is or becomes `path`, with all that is known, and store its sum."""
    summed = hashlib.sha256()
    with open(file, "rb") as opened:
        while chunk := opened.read(1 << 20):
            summed.update(chunk)
    digest = summed.hexdigest()
    if published and not digest.startswith(published.lower()):
        raise DownloadError(describe("sha256", f"{published} (published) of {where}", digest, fix))
    beside = stored_sha256(path)
    words = beside.read_text().split() if beside.is_file() else []
    if words and words[0] != digest:
        fix += f" Delete '{beside}' to accept another file."
        expected = f"{words[0]} (an earlier fetch's) of {where}"
        raise DownloadError(describe("sha256", expected, digest, fix))
    try:
        read_tensors(file)
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(file) as archive:
            if damaged := archive.testzip():  # torch does not look at the sums in it
                raise CheckpointError(f"'{damaged}' in it is damaged.")
    except CheckpointError as error:
        raise DownloadError(describe("url", f"weights at {where}", str(error), fix)) from error
    write_bytes(beside, f"{digest}  {path.name}\n".encode())
    checked = "stored" if words else None
    if published:
        whole = len(published) == len(digest)
        checked = "published" if whole else f"first {len(published)} published digits"
    return Fetched(path, digest, checked, new)


def _transfer(url: str, file: Path, quiet: bool) -> None:
    """The whole answer of the server into `file`."""
    if not re.match(r"https?://", url):
        raise DownloadError(describe("url", "an http or https address", repr(url)))
    # some servers refuse Python's own name; an opener of its own reads the proxies anew
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "roli_fast"})
        with urllib.request.build_opener().open(request, timeout=TIMEOUT) as reply:
            _receive(reply, url, file, quiet)
    except urllib.error.HTTPError as error:
        error.close()
        fix = "Give another address with --url."
        if error.code not in (401, 403, 404, 410):
            fix = "Try again later, or give another address with --url."
        got = f"HTTP status {error.code} for {url}"
        raise DownloadError(
            describe("url", "a file that the server gives out", got, fix)
        ) from error
    except DownloadError:
        raise
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise DownloadError(_broken(url, str(reason))) from error


def _receive(reply: Any, url: str, file: Path, quiet: bool) -> None:
    kind, length = reply.headers.get_content_type(), reply.headers.get("Content-Length")
    if reply.status != 200 or kind == "text/html":
        got = f"HTTP status {reply.status} with {kind} for {url}"
        fix = "A page stands there: give the file's own address with --url."
        raise DownloadError(describe("url", "a file that the server gives out", got, fix))
    total = int(length) if length else None
    bar = {"total": total, "desc": file.stem, "disable": quiet}
    with open(file, "wb") as out, tqdm.wrapattr(out, "write", **bar) as wrapped:
        shown: Any = wrapped
        shutil.copyfileobj(reply, shown, 1 << 18)
    if total not in (None, size := file.stat().st_size):
        raise DownloadError(_broken(url, f"an end after {size:,} of {total:,} bytes"))


def _broken(url: str, got: str) -> str:
    fix = "Check the network and the proxy (https_proxy), or give a mirror with --url."
    return describe("url", f"the whole file at {url}", got, fix)

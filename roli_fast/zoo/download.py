"""A download that is whole or absent: into a fresh folder, checked, renamed at the end."""

import hashlib
import http.client
import tempfile
import urllib.error
from pathlib import Path

import torch

from roli_fast.errors import CheckpointError, DownloadError, describe
from roli_fast.files import commit, read_tensors


def fetch(url: str, path: Path, *, sha256: str = "", quiet: bool = True) -> str:
    """Return the sha256 of the weights at `path`, brought there from `url` unless they are there.

    What is kept can be read as weights. Proxies are urllib's (http_proxy, https_proxy, no_proxy).

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
        return _checked(path, sha256, f"'{path}'", "Delete it and fetch it again.")
    # a folder of its own: the suffix says how the file is read, and two may fetch at once
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as folder:
        fresh = Path(folder) / path.name
        try:
            torch.hub.download_url_to_file(url, str(fresh), progress=not quiet)
        except (OSError, ValueError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            fix = "Check the network and the proxy (https_proxy), or give a mirror with --url."
            raise DownloadError(describe("url", f"the file at {url}", error, fix)) from error
        fix = "Nothing was kept: the file at this address is not the one that was expected."
        digest = _checked(fresh, sha256, url, fix)
        commit(fresh, path)
        return digest


def _checked(file: Path, sha256: str, where: str, fix: str) -> str:
    """The sha256 of a file of weights, if it begins with the published one."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if not digest.startswith(sha256.lower()):
        raise DownloadError(describe("sha256", f"{sha256} (published) of {where}", digest, fix))
    try:
        read_tensors(file)
    except CheckpointError as error:
        raise DownloadError(describe("url", f"weights at {where}", str(error), fix)) from error
    return digest

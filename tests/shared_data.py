"""Finds the real images that some tests use, and unpacks them once per machine."""

import hashlib
import os
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


class SharedData:
    """Folders of real data; a method skips the test when its archive is not there.

    `ROLI_FAST_DATA` names the folder of archives; the default is shared/data beside the
    repository. Unpacked copies stay in the user's cache folder.
    """

    def __init__(self, archives: Path, cache: Path) -> None:
        self._archives = archives
        self._cache = cache

    def cifar10(self, per_class: int | None = None) -> Path:
        """{train,test}/<class>/*.jpg, 32x32; the first `per_class` files of each folder."""
        return self._unpacked("cifar10", per_class)

    def caltech101(self) -> Path:
        """{train,val,test}.json and images/<class>/*.webp, 101 classes, short side 72."""
        return self._unpacked("caltech101") / "caltech101"

    def roli_splits(self) -> Path:
        """The published lists: {caltech256,cub,stanforddogs}/{train,val,test}.json, no images."""
        return self._unpacked("roli_splits") / "roli_splits"

    def _unpacked(self, name: str, per_folder: int | None = None) -> Path:
        archive = self._archives / f"{name}.tar.xz"
        if not archive.is_file():
            pytest.skip(f"no {archive.name} in {self._archives}; set ROLI_FAST_DATA")
        digest = hashlib.blake2b(archive.read_bytes(), digest_size=6).hexdigest()
        target = self._cache / f"{name}-{per_folder or 'all'}-{digest}"
        if not target.is_dir():
            self._unpack(archive, target, per_folder)
        return target

    def _unpack(self, archive: Path, target: Path, per_folder: int | None) -> None:
        """Unpack beside `target`, then rename: a parallel or interrupted run leaves no half."""
        self._cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=self._cache, prefix=".partial-"))
        try:
            with tarfile.open(archive) as content:
                content.extractall(partial, _first(content, per_folder), filter="data")
            partial.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was first
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def robust_vit() -> Path:
    """A small adversarially trained ViT's weights; skips the test where they are not there."""
    path = _archives().parent / "weights" / "vit_micro_imagenet99_adv.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path.name} in {path.parent}; set ROLI_FAST_DATA")
    return path


def _archives() -> Path:
    default = REPOSITORY.parent / "shared" / "data"
    return Path(os.environ.get("ROLI_FAST_DATA") or default)


def find() -> SharedData:
    """The shared data of this machine; whether an archive exists is seen when it is asked for."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return SharedData(_archives(), Path(cache) / "roli_fast" / "test_data")


def _first(content: tarfile.TarFile, per_folder: int | None) -> Iterator[tarfile.TarInfo]:
    seen: Counter[str] = Counter()
    for member in content:
        folder = str(PurePosixPath(member.name).parent)
        seen[folder] += member.isfile()
        if per_folder is None or not member.isfile() or seen[folder] <= per_folder:
            yield member

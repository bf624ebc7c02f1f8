"""Image files of every mode and depth, and damaged ones."""

import contextlib
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import write_image
from torch import Tensor

from roli_fast.data.image_folder import ImageFolder
from roli_fast.data.inspection import inspect_images
from roli_fast.data.pixels import ArrayPixels, FilePixels
from roli_fast.errors import ArgumentError, DataError


def read(path: Path) -> torch.Tensor:
    return FilePixels(path.parent, (path.name,), ("cat",)).read(0)


def saved(path: Path, mode: str, color: object, **options: object) -> Path:
    Image.new(mode, (4, 2), color).save(path, **options)  # pyright: ignore
    return path


def test_pixels_are_channels_first_and_in_order(tmp_path: Path) -> None:
    rows = np.array([[[1, 2, 3], [4, 5, 6], [7, 8, 9]]], dtype=np.uint8)
    Image.fromarray(rows).save(tmp_path / "a.png")
    image = read(tmp_path / "a.png")
    assert image.dtype == torch.uint8
    assert image.tolist() == [[[1, 4, 7]], [[2, 5, 8]], [[3, 6, 9]]]


@pytest.mark.parametrize(
    ("mode", "color", "name", "expected"),
    [
        ("1", 1, "a.png", [255, 255, 255]),
        ("LA", (50, 0), "a.png", [50, 50, 50]),
        ("RGBA", (10, 20, 30, 0), "a.png", [10, 20, 30]),
        ("CMYK", (255, 0, 0, 0), "a.tif", [0, 255, 255]),
    ],
)
def test_other_modes_become_rgb(
    tmp_path: Path, mode: str, color: object, name: str, expected: list[int]
) -> None:
    image = read(saved(tmp_path / name, mode, color))
    assert image.shape == (3, 2, 4)
    assert image.flatten(1).unique(dim=1)[:, 0].tolist() == expected


def test_palette_images_become_rgb(tmp_path: Path) -> None:
    """Transparency given as bytes makes Pillow's direct conversion warn."""
    image = Image.new("P", (4, 2), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.save(tmp_path / "a.png", transparency=b"\x00\x80")
    assert read(tmp_path / "a.png")[:, 0, 0].tolist() == [200, 100, 50]


def test_images_are_turned_as_their_exif_block_says(tmp_path: Path) -> None:
    """Orientation 6: what is stored as the left column is shown as the top row."""
    stored = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    shown = np.rot90(stored, -1)
    assert read(tmp_path / "a.png").tolist() == shown.transpose(2, 0, 1).tolist()


def test_a_damaged_exif_block_turns_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", "RGB", 0, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read(path).shape == (3, 2, 4)


@pytest.mark.parametrize("name", ["a.png", "big-endian.tif"])
def test_grey_of_16_bits_is_scaled(tmp_path: Path, name: str) -> None:
    values = np.array([[0, 128, 129, 257, 25700, 65535]])
    kind = ">u2" if name == "big-endian.tif" else "<u2"
    Image.fromarray(values.astype(kind)).save(tmp_path / name)
    assert read(tmp_path / name).tolist() == [[[0, 0, 1, 1, 100, 255]]] * 3


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Grey images of 12 bits in files of 16, of two classes; one pixel of all is white, 4095."""
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(6):
            values = draw.integers(0, 900, (8, 8)).astype(np.uint16)
            values[0, 0] = 4095 if (name, index) == ("b", 2) else 900
            suffix = "tif" if index % 2 else "png"
            Image.fromarray(values).save(tmp_path / name / f"{index}.{suffix}")
    return tmp_path


def levels_of(root: Path, name: str, **options: object) -> list[int]:
    """The grey levels of one image of the folder."""
    splits = ImageFolder(str(root), image_size=8, **options).load()  # pyright: ignore
    pixels = splits.train.pixels
    row = next(row for row in range(len(pixels)) if pixels.name(row) == name)
    return pixels.read(row)[0].flatten().tolist()


@pytest.mark.parametrize("name", ["a/1.tif", "b/2.png"])
def test_twelve_bits_in_sixteen_are_scaled_by_the_brightest_pixel_of_the_folder(
    scans: Path, name: str
) -> None:
    """Not of the image: 900 is 56 in every one of them, as 900 / 4095 * 255 = 56.04."""
    stored = np.asarray(Image.open(scans / name)).flatten().astype(float)
    expected = np.round(stored / 4095 * 255).astype(int).tolist()
    assert levels_of(scans, name) == expected and 50 < max(expected[1:]) < 57
    assert levels_of(scans, name, bit_depth=16) == np.round(stored / 257).astype(int).tolist()
    assert levels_of(scans, name, bit_depth=14)[1] == round(stored[1] / (2**14 - 1) * 255)


def test_the_bits_in_use_are_told_once_and_no_damaged_file_hides_them(
    scans: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_image(scans / "a" / "colour.png")
    (scans / "a" / "0.png").write_bytes(b"damaged")
    splits = ImageFolder(str(scans), image_size=8).load()
    with caplog.at_level("INFO", "roli_fast.data"):
        with pytest.raises(DataError, match=r"0\.png"):
            inspect_images({"all": splits.train, "rest": splits.test}, decode=True, quiet=True)
        splits.val[0]
    assert [r.message for r in caplog.records if "4095" in r.message and "12 bits" in r.message]
    assert len(caplog.records) == 1


def test_a_depth_that_the_pixels_exceed_is_refused(scans: Path) -> None:
    with pytest.raises(DataError, match=r"2\.png.*a pixel of 4095, more than data\.bit_depth 10"):
        levels_of(scans, "b/2.png", bit_depth=10)
    with pytest.raises(ArgumentError, match="`bit_depth`: expected an integer from 8 to 16, got 1"):
        ImageFolder(str(scans), bit_depth=1)


def test_deeper_pixels_are_refused_not_clipped(tmp_path: Path) -> None:
    for mode in ("F", "I"):
        with pytest.raises(DataError, match="more than 16 bits per channel"):
            read(saved(tmp_path / "a.tif", mode, 1000))


def test_one_channel_is_pillow_s_grey(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", size=(40, 30))
    grey = torch.from_numpy(np.array(Image.open(path).convert("L")))
    pixels = FilePixels(tmp_path, ("a.png",), ("cat",))
    assert torch.equal(pixels.grey().read(0), grey[None])
    assert torch.equal(ArrayPixels(pixels.read(0)[None]).grey().read(0), grey[None])


@pytest.mark.parametrize(("side", "filtered"), [(12_000, "ignore"), (40_000, "error")])
def test_a_bomb_is_named_before_it_is_decoded(tmp_path: Path, side: int, filtered: str) -> None:
    path = saved(tmp_path / "a.png", "L", 0)
    raw = bytearray(path.read_bytes())
    raw[16:24] = struct.pack(">2I", side, side)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    path.write_bytes(raw)
    with warnings.catch_warnings():
        warnings.simplefilter(filtered, Image.DecompressionBombWarning)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=r"a\.png.*got more than 89,478,485 pixels"):
            read(path)


def test_what_is_no_regular_file_is_named(tmp_path: Path) -> None:
    """To open a pipe would wait for ever. A link is what it leads to."""
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink("/dev/zero", tmp_path / "device.png")
    for name in ("pipe.png", "device.png"):
        with pytest.raises(DataError, match=rf"{name}.*got no regular file"):
            read(tmp_path / name)
    write_image(tmp_path / "there.png")
    for name, target in (("a.png", "there.png"), ("b.png", "gone.png")):
        os.symlink(target, tmp_path / name)
    assert read(tmp_path / "a.png").shape == (3, 9, 12)
    with pytest.raises(DataError, match=r"b\.png.*class 'cat', got no such file"):
        read(tmp_path / "b.png")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    """Cut off, or with four wrong bytes: an image or a DataError, and nothing else."""
    path = write_image(tmp_path / name, size=(64, 64))
    raw, rng = path.read_bytes(), np.random.default_rng(0)
    for keep in (0, 0.02, 0.6):
        path.write_bytes(raw[: int(len(raw) * keep)])
        with pytest.raises(DataError) as caught:
            read(path)
        text = str(caught.value)
        assert str(path) in text and "'cat'" in text and "Restore the file" in text
    for _ in range(30):
        damaged = np.frombuffer(raw, dtype=np.uint8).copy()
        damaged[rng.integers(0, len(raw), 4)] = rng.integers(0, 256, 4)
        path.write_bytes(damaged.tobytes())
        with contextlib.suppress(DataError):
            assert read(path).dtype == torch.uint8


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    """Pillow would run Ghostscript on an EPS, whatever it is called."""
    eps = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    for text in (eps, "<html>404</html>"):
        (tmp_path / "a.jpg").write_text(text)
        with pytest.raises(DataError, match="cannot identify image file"):
            read(tmp_path / "a.jpg")


@pytest.mark.parametrize(("free", "moves"), [(48, True), (47, False)])
def test_images_go_to_a_gpu_whose_free_memory_holds_them_four_times(
    monkeypatch: pytest.MonkeyPatch, free: int, moves: bool
) -> None:
    """12 bytes. No GPU is needed: that they are asked to move is seen."""
    pixels = ArrayPixels(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free, 1000))
    monkeypatch.setattr(Tensor, "to", lambda x, device: asked.append(device) or x)
    gpu = torch.device("cuda")
    assert (pixels.kept_on(gpu) is not pixels) == moves
    assert asked == [gpu] * moves
    assert pixels.kept_on(torch.device("cpu")) is pixels

"""The command line of `python -m roli_fast.analyze`: what it reads, and what it refuses."""

from pathlib import Path

import pytest

from roli_fast.analyze import main, parse
from roli_fast.errors import ConfigError


def test_what_is_asked_for() -> None:
    plain = parse(["a", "b/seed-0/roli"])
    assert plain.runs == [Path("a"), Path("b/seed-0/roli")]
    assert (plain.deep, plain.methods, plain.images, plain.again) == ((), None, None, False)
    full = parse(
        "a --kernel --ft_ratio --methods roli,ranli --seeds 0,2 --images 30 --memory 500MB "
        "--device cpu --workers 0 --again".split()
    )
    assert full.deep == ("ft_ratio", "kernel")
    assert (full.methods, full.seeds) == (("roli", "ranli"), (0, 2))
    assert (full.images, full.memory, full.workers, full.again) == (30, 500 * 2**20, 0, True)
    assert parse(["a", "--all"]).deep == ("ft_ratio", "head_scale", "kernel")


@pytest.mark.parametrize(
    ("text", "size"), [("2GiB", 2**31), ("1.5k", 1536), ("4096", 4096), ("1e9", 10**9)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse(["a", "--memory", text]).memory == size


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("a --kernels", "--kernels"),
        ("a --images 0", "--images: invalid positive_integer value: '0'"),
        ("a --seeds one", "--seeds: invalid list of int value: 'one'"),
        ("a --memory lots", "--memory: invalid size value: 'lots'"),
    ],
)
def test_a_mistake_is_named(arguments: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(arguments.split())


def test_help_and_exit_status(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert not caught.value.code
    text = capsys.readouterr().out
    assert "--ft_ratio" in text
    assert max(map(len, text.splitlines())) <= 100
    assert main([str(tmp_path)]) == 2
    assert f"got '{tmp_path}'. Name the folder" in caplog.text

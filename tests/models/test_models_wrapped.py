"""Checkpoints as others publish them: what stands around the tensors, and what is not loaded."""

import argparse
import math
import pickle
import warnings
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import SMALL, images, tiny
from torch import Tensor, nn

from roli_fast.errors import CheckpointError
from roli_fast.models import Model, create, load_backbone, read_state_dict
from roli_fast.models.layouts import unwrapped
from roli_fast.models.weights import fingerprint

VIT = "vit_tiny_patch16_224"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def own(seed: int = 1) -> dict[str, Tensor]:
    return dict(tiny(seed=seed).backbone.state_dict())


def under(prefix: str, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in (state or own()).items()}


def buffers(mean: str, std: str, shape: tuple[int, ...] = (3, 1, 1)) -> dict[str, Tensor]:
    return {mean: torch.tensor(MEAN).view(shape), std: torch.tensor(STD).view(shape)}


PUBLISHED: dict[str, tuple[Any, bool]] = {
    "compiled in DDP": (under("module._orig_mod."), False),
    "model": ({"state_dict": under("model.")}, False),
    "net": ({"net": under("module."), "acc": 57.1, "epoch": 90}, False),
    "ema alone": ({"state_dict_ema": under("module.")}, False),
    "teacher": ({"teacher": under("backbone.")}, False),
    "averaged": ({**under("module."), "n_averaged": torch.tensor(3)}, False),
    "mu and sigma": ({**under("model."), **buffers("mu", "sigma", (1, 3, 1, 1))}, True),
    "beside the network": ({**own(), **buffers("mean", "std")}, True),
    "Sequential": ({**under("1."), **buffers("0.mean", "0.std")}, True),
    "named Sequential": (
        {**under("model."), **buffers("normalize.mean", "normalize.std", (3,))},
        True,
    ),
    "robustness": (
        {
            "model": {
                **under("module.model."),
                **under("module.attacker.model."),
                **buffers("module.normalizer.new_mean", "module.normalizer.new_std"),
                **buffers(
                    "module.attacker.normalize.new_mean", "module.attacker.normalize.new_std"
                ),
            }
        },
        True,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_network_is_found(name: str, tmp_path: Path) -> None:
    content, normalised = PUBLISHED[name]
    torch.save(content, tmp_path / "w.pth")
    assert fingerprint(read_state_dict(tmp_path / "w.pth")) == fingerprint(own())
    model = create(
        Model(VIT, options=SMALL[VIT], weights=str(tmp_path / "w.pth")), num_classes=5, image_size=8
    )
    assert model.card["mean"] == list(MEAN if normalised else (0.5, 0.5, 0.5))
    assert model.card["std"] == list(STD if normalised else (0.5, 0.5, 0.5))
    x = images(2, 3, 8, 8)
    reference = tiny(seed=1, config={"mean": model.card["mean"], "std": model.card["std"]})
    assert torch.equal(model.eval().features(x), reference.eval().features(x))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (under("student.trunk."), "begin with 'student.trunk.': take that off"),
        ({**own(), **buffers("a.mu", "a.sigma"), "mean": torch.zeros(3), "std": torch.ones(3)},
         "one normalisation"),
        ({**own(), "mean": torch.full((3,), 120.0), "std": torch.full((3,), 60.0)}, r"in \[0, 1\]"),
        ({"weights": own(), "epoch": 3}, r"other contents \(weights, epoch\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_named(content: Any, words: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=f"`weights`.*{words}"):
        create(Model(VIT, options=SMALL[VIT], weights=str(tmp_path / "w.pth")), num_classes=5)


def test_a_choice_of_two_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state, _ = unwrapped({"state_dict": own(), "state_dict_ema": own(2)}, tmp_path / "w.pth")
    assert fingerprint(state) == fingerprint(own())
    assert "holds state_dict and state_dict_ema; taking state_dict" in caplog.text


def test_what_stands_beside_the_tensors_does_no_harm(tmp_path: Path) -> None:
    beside = {
        "args": argparse.Namespace(lr=0.1, aug=["a"], out=Path("x")),
        "numbers": {"acc": np.float64(0.5), "n": np.int64(3), "done": np.bool_(True)},
        "ordered": OrderedDict(a=1),
        "history": defaultdict(list, loss=[1.0]),
    }
    torch.save({"state_dict": own(), **beside}, tmp_path / "w.pth")
    assert fingerprint(read_state_dict(tmp_path / "w.pth")) == fingerprint(own())


def test_what_a_file_is_instead_is_named(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and its files are there
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "s.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "m.pth")
    torch.save({"state_dict": own(), "o": slice(3)}, tmp_path / "o.pth")
    (tmp_path / "p.pth").write_bytes(pickle.dumps([1, 2])[:4])
    for suffix in ("pth", "safetensors"):
        (tmp_path / f"h.{suffix}").write_bytes(b"\n<!DOCTYPE html><html>Log in</html>")
        (tmp_path / f"l.{suffix}").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid")
    for file, words in {
        "s.pth": "a TorchScript archive.*state_dict",
        "m.pth": r"it is whole, and holds torch\.nn\.modules\.linear\.Linear.*state dict alone",
        "o.pth": "it is whole, and holds .*slice",
        "p.pth": "`weights`",
        "h.pth": "an HTML page.*download the file itself",
        "h.safetensors": "an HTML page",
        "l.pth": "a pointer of git-LFS.*git lfs pull",
        "l.safetensors": "a pointer of git-LFS",
    }.items():
        with pytest.raises(CheckpointError, match=words) as caught:
            read_state_dict(tmp_path / file)
        assert "weights_only" not in str(caught.value) and "arbitrary" not in str(caught.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_number_that_is_none_is_refused_by_name(value: float, tmp_path: Path) -> None:
    state = own()
    state["blocks.1.mlp.fc1.weight"][0, :2] = value
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(
        CheckpointError, match=r"no NaN and no infinity, got 2 in blocks\.1\.mlp\.fc1"
    ):
        load_backbone(tiny(), tmp_path / "w.pth")
    state = own()
    state["head.weight"][:] = value  # it is left aside
    torch.save(state, tmp_path / "w.pth")
    load_backbone(tiny(), tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("name", "small", "large", "table"),
    [
        (
            "swin_tiny_patch4_window7_224",
            {"window_size": 2, "img_size": 16},
            {"window_size": 4, "img_size": 32},
            "layers.0.blocks.0.attn.relative_position_bias_table",
        ),
        (
            "beit_base_patch16_224",
            {"img_size": 32},
            {"img_size": 64},
            "blocks.0.attn.relative_position_bias_table",
        ),
    ],
)
def test_tables_of_positions_are_resampled(
    name: str, small: Any, large: Any, table: str, tmp_path: Path
) -> None:
    shared = SMALL.get(name) or {"depth": 1, "embed_dim": 24, "num_heads": 3}
    first = create(Model(name, options={**shared, **small}), num_classes=5)
    own = first.get_parameter(f"backbone.{table}")
    own.data.copy_(ramp(own))
    torch.save(first.backbone.state_dict(), tmp_path / "w.pth")
    config = Model(name, options={**shared, **large}, weights=str(tmp_path / "w.pth"))
    again = create(config, num_classes=5, image_size=large["img_size"])
    old, new = (m.get_parameter(f"backbone.{table}") for m in (first, again))
    assert old.shape != new.shape and old.shape[1] == new.shape[1]
    grid = ramp(new)[:, 0]
    places = grid.unique()
    means = [new[: len(grid)][grid[: len(new)] == place].mean(0)[0].item() for place in places]
    assert means == sorted(means) and means[0] == pytest.approx(-means[-1], abs=1e-3)
    assert means[-1] == pytest.approx(1, abs=0.3) and max(map(abs, means)) < 1.3
    assert again(images(1, 3, large["img_size"], large["img_size"])).shape == (1, 5)


def ramp(table: Tensor) -> Tensor:
    """-1 to 1 along the width of a table of offsets; zero for what stands behind the grid."""
    side = math.isqrt(len(table))
    row = torch.linspace(-1, 1, side).repeat(side)
    return torch.cat([row, row.new_zeros(len(table) - side**2)])[:, None].expand(table.shape)

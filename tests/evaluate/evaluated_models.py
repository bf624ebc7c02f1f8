"""Models that tests evaluate by name, `evaluated_models:nearest` say, and how they do."""

import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from roli_fast.data import DATASETS
from roli_fast.evaluate import read_report
from roli_fast.evaluate.__main__ import parse
from roli_fast.evaluate.run import run

SIZE = 8
FLAGS = (
    f"--model evaluated_models:nearest --data digits --data.image_size {SIZE} --threads 1 "
    "--attacks pgd-3,apgd-ce-6 --norm linf,l2 --eps 0.06,0.5 --images 90 --chunk 40 --batch_size 16"
).split()
SAVED = "--save_adversarial=true"


def assess(folder: Path, *more: str, resume: bool = False) -> dict[str, Any]:
    """The report of an evaluation of `FLAGS`."""
    report = run(parse([*FLAGS, *more]).config, folder, resume=resume, quiet=True)
    assert report is not None
    return report


def assert_same_flags(first: Path, second: Path) -> None:
    """Of two evaluations, search by search."""
    a, b = read_report(first), read_report(second)
    assert torch.equal(a.ids, b.ids) and torch.equal(a.clean, b.clean)
    for norm in a.tree["norms"]:
        pairs = (tree["norms"][norm]["searches"] for tree in (a.tree, b.tree))
        for one, other in zip(*pairs, strict=True):
            assert one["fooled_flags"] == other["fooled_flags"]


class Nearest(nn.Module):
    """The class whose mean image is nearest: linear, and right for nine digits of ten."""

    def __init__(self) -> None:
        super().__init__()
        train = DATASETS["digits"](image_size=SIZE).load().train.plain()
        x, y, _ = train.batch(torch.arange(len(train)))
        means = torch.stack([x[y == label].mean(0) for label in range(10)]).flatten(1)
        self.head = nn.Linear(means.shape[1], 10)
        with torch.no_grad():
            self.head.weight.copy_(2 * means)
            self.head.bias.copy_(-means.square().sum(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


class Slow(Nearest):
    """So slow that a test can stop it in between."""

    seconds = 0.05

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return super().forward(x)


class Pair(Nearest):
    """Returns more than logits."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), x


class Broken(Nearest):
    """NaN for dark images."""

    def forward(self, x: Tensor) -> Tensor:
        dark = x.flatten(1).mean(1, keepdim=True) < 0.25
        return super().forward(x).masked_fill(dark, torch.nan)


class Few(Nearest):
    """Five outputs."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :5]


class Steps(Nearest):
    """Sees a third of the grey levels: its gradient is zero everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((3 * x).round() / 3)


class OneAnswer(Nearest):
    """Class 3, whatever it is shown."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1000 * torch.eye(10)[3]


def nearest() -> nn.Module:
    return Nearest().eval()


def drawn() -> nn.Module:
    """Other weights in every process, and at every start."""
    model = Nearest().eval()
    with torch.no_grad():
        model.head.bias.add_(1e-6 * time.time_ns() % 1)
    return model


class Extra(Nearest):
    """Has more of a state than tensors."""

    def get_extra_state(self) -> dict[str, object]:
        return {"version": 2, "steps": [1, 2]}

    def set_extra_state(self, state: object) -> None: ...


def quantised() -> Any:
    """int8 weights: a state dict of tuples, and no gradients."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.ao.quantization.quantize_dynamic(Nearest().eval(), {nn.Linear})


def frozen() -> nn.Module:
    """A frozen script, without modes and parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.freeze(torch.jit.trace(nearest(), _X))


_X = torch.zeros(2, 3, SIZE, SIZE)

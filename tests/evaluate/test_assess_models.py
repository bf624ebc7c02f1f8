"""Evaluations of modules that are no plain networks: quantised, frozen, with more of a state."""

from pathlib import Path

import evaluated_models
import pytest
import torch
from evaluated_models import SIZE

from roli_fast.evaluate.cli import parse
from roli_fast.evaluate.driver import run
from roli_fast.models.weights import fingerprint

FLAGS = (
    f"--data digits --data.image_size {SIZE} --attacks square-10 --norm linf --eps 0.06 --images 20"
).split()


@pytest.mark.filterwarnings("ignore:quantized:UserWarning")  # torch's, of a gradient that it lacks
@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("quantised", "only searches without gradients can attack it"),
        ("frozen", "the model is a frozen script: whether it changed cannot be told"),
        ("Extra", "gave a model in train mode"),
    ],
)
def test_a_search_without_gradients(tmp_path: Path, name: str, note: str) -> None:
    flags = ["--model", f"evaluated_models:{name}", *FLAGS]
    report = run(parse(flags).assessment, tmp_path / "out", resume=False, quiet=True)
    assert report is not None and 0.5 < report["norms"]["linf"]["robust"]["accuracy"] <= 1
    assert note in str(report)


def test_fingerprints_tell_models_and_values_apart() -> None:
    one, same, other = (evaluated_models.quantised() for _ in range(3))
    weight = other.head.weight().dequantize()
    other.head.set_weight_bias(torch.quantize_per_tensor(-weight, 0.1, 0, torch.qint8), None)
    found = [fingerprint(model.state_dict()) for model in (one, same, other)]
    assert found[0] == found[1] != found[2]

    def of(**extra: object) -> str:
        return fingerprint({"weight": torch.ones(2), "_extra_state": extra})

    assert of(steps=[1, 2]) == of(steps=[1, 2]) != of(steps=[1, 3])
    assert of(a=None) != of(b=None)

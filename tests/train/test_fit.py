"""`roli_fast.fit`: the command's stages on objects of the user's."""

import os
import re
import signal

import pytest
import torch
from small import assert_same_weights
from torch import nn
from torch.utils.data import TensorDataset

import roli_fast
from roli_fast import peft
from roli_fast.data.digits import Digits
from roli_fast.errors import ArgumentError, InterruptedRunError, RunDirectoryError
from roli_fast.models import load, wrap
from roli_fast.train.loop import StageLoop

OPTIONS = {
    "probe.attack.steps": 2, "finetune.attack.steps": 2, "validation.steps": 1, "test.steps": 2,
    "analysis_images": 0, "report": False, "probe.optimizer.lr": 0.1,
}  # fmt: skip


def own_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> tuple[TensorDataset, TensorDataset]:
    """Real images as a user has them: tensors and labels."""
    splits = Digits(classes=(3, 5, 8), max_per_class=40, augment=False).load()
    sets = []
    for part in (splits.train, splits.test):
        batch = part.batch(torch.arange(len(part)))
        sets.append(TensorDataset(batch.x, batch.y))
    return sets[0], sets[1]


def test_any_network_and_data_set_become_a_robust_network(digits, tmp_path) -> None:
    network = own_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    call = {"eps": 0.05, "epochs": 6, "lr": 5e-3, "batch_size": 32, "options": OPTIONS}
    fitted = roli_fast.fit(network, *digits, run_dir=tmp_path / "a", quiet=True, **call)
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())
    x, y = digits[1].tensors
    assert fitted.classes == ("0", "1", "2") and fitted.model(x).shape == (len(y), 3)
    right = (fitted.model(x).argmax(1) == y).double().mean().item()
    assert right == pytest.approx(fitted.clean_accuracy, abs=0.011)  # images are of 8 bits there
    assert fitted.clean_accuracy > 0.8  # chance is a third
    (robust,) = fitted.robust_accuracy.values()
    assert 0.4 < robust <= fitted.clean_accuracy
    assert type(fitted.model.backbone) is nn.Sequential and "roli" in str(fitted)
    best = next((tmp_path / "a").rglob("stage-2-finetune/best.safetensors"))
    assert torch.equal(load(best, network=own_network())(x), fitted.model(x))
    # the same call again reads what is there
    again = roli_fast.fit(network, *digits, run_dir=tmp_path / "a", quiet=True, **call)
    assert again.robust_accuracy == fitted.robust_accuracy
    with pytest.raises(RunDirectoryError, match="another configuration"):
        roli_fast.fit(own_network(), *digits, run_dir=tmp_path / "a", quiet=True)


def test_a_run_that_was_stopped_goes_on_by_the_same_call(digits, tmp_path, monkeypatch) -> None:
    def fit(name: str):
        return roli_fast.fit(
            wrap(own_network(), mean=(0.5,) * 3, std=(0.5,) * 3), digits[0],
            tuning=peft.Bias(), epochs=2, run_dir=tmp_path / name, quiet=True, options=OPTIONS,
        )  # fmt: skip

    validate = StageLoop._validate

    def stops(self: StageLoop) -> dict[str, float]:
        found = validate(self)
        os.kill(os.getpid(), signal.SIGINT)
        return found

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(StageLoop, "_validate", stops)
        text = (
            r"best weights so far are in '(.*probe/best.safetensors)'; saved.*run_dir='.*stopped'"
        )
        with pytest.raises(InterruptedRunError, match=text) as stopped:
            fit("stopped")
    assert signal.getsignal(signal.SIGINT) is handler
    best = re.search(text, str(stopped.value))
    assert best and load(best[1])(digits[1].tensors[0]).shape[1] == 3
    fit("stopped")
    fit("straight")
    assert_same_weights(tmp_path / "stopped", tmp_path / "straight")


def test_a_classifier_is_fine_tuned_with_its_own_head(digits, tmp_path) -> None:
    network = own_network()
    network[5] = nn.Linear(256, 3)
    found = roli_fast.fit(
        network, *digits, method="finetune", epochs=1, lr=1e-9, run_dir=tmp_path, quiet=True,
        options=OPTIONS,
    )  # fmt: skip
    torch.testing.assert_close(found.model.head.weight, network[5].weight, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("roli", [("probe", 3, "Linear", None), ("finetune", 3, "Bias", 0.02)]),
        ("ranli", [("ranli", 3, "Bias", 0.02)]),
        ("lp_ft", [("lp", 1, "Linear", None), ("ft", 3, "Bias", 0.02)]),
        ("scratch", [("pretrain", 3, "Bias", 0.02)]),
    ],
)
def test_what_is_given_reaches_the_stages(method, expected, tmp_path, monkeypatch) -> None:
    """Of the head's own rates nothing is said."""

    def stop(experiment, *_: object, **__: object) -> None:
        stages = experiment.stages(method)
        assert [s.batch_size for _, s in stages] == [8] * len(stages)
        rates = [None if name in ("probe", "lp") else s.optimizer.lr for name, s in stages]
        seen = [(n, s.epochs, type(s.tuning).__name__) for n, s in stages]
        assert [(*one, rate) for one, rate in zip(seen, rates, strict=True)] == expected
        raise InterruptedRunError("seen", 2)

    monkeypatch.setattr(roli_fast.train.fit, "run", stop)
    with pytest.raises(InterruptedRunError, match="seen"):
        roli_fast.fit(
            "resnet18", Digits(classes=(0, 1)), method=method, tuning=peft.Bias(), epochs=3,
            batch_size=8, lr=0.02, run_dir=tmp_path,
        )  # fmt: skip


def test_what_cannot_be_given_is_named(digits, tmp_path) -> None:
    data = Digits(classes=(0, 1))
    with pytest.raises(ArgumentError, match="`tuning and lr`: expected None for the method probe"):
        roli_fast.fit("resnet18", data, method="probe", lr=0.1, run_dir=tmp_path)
    with pytest.raises(ArgumentError, match="`test and val`"):
        roli_fast.fit("resnet18", data, digits[1])

"""The line between two models: its weights, its ends, its statistics, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from tiny_models import tiny
from torch import Tensor

from roli_fast import merge as command
from roli_fast import peft
from roli_fast.attacks import FGSM
from roli_fast.data import DATASETS
from roli_fast.errors import ArgumentError
from roli_fast.evaluate import evaluate
from roli_fast.evaluate.__main__ import parse
from roli_fast.evaluate.run import run
from roli_fast.evaluate.shares import to_text
from roli_fast.merge import between
from roli_fast.models import Classifier, load, save_model

DATA = "--data digits --data.classes 0,1,2,3,4 --data.image_size 32 --data.channels 3"
FLAGS = f"{DATA} --data.max_per_class 20 --eps 0.1 --attacks fgsm --batch_size 128".split()


def two(name: str = "resnet18", **options: object) -> list[Classifier]:
    """Of one architecture, with other weights and statistics."""
    models = [tiny(name, seed=seed, **options) for seed in (0, 1)]  # type: ignore[arg-type]
    for place, model in enumerate(models):
        model.card["classes"] = list("01234")
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.fill_(0.1 * place)  # type: ignore[union-attr]
    return models


def test_weights_and_statistics_by_hand() -> None:
    one, other = two()
    found = {t: between(one, other, t).state_dict() for t in (0.0, 0.25, 1.0)}
    for name, a in one.state_dict().items():
        b = other.state_dict()[name]
        assert torch.equal(found[0.0][name], a)
        if a.is_floating_point():
            assert torch.equal(found[1.0][name], b)
            torch.testing.assert_close(found[0.25][name], 0.75 * a + 0.25 * b)


def test_lora_is_merged_first() -> None:
    """Half way to a model with LoRA lies half of its update, and not the product of halves."""
    one, other = two("vit_tiny_patch16_224")
    other.load_state_dict(one.state_dict())
    peft.apply(other, peft.LoRA(rank=2))
    name, layer = next((n, m) for n, m in other.named_modules() if isinstance(m, peft.LoraLinear))
    with torch.no_grad():
        layer.lora_b.normal_(generator=torch.Generator().manual_seed(0))
    own: Tensor = one.get_submodule(name).weight  # type: ignore[assignment]
    whole: Tensor = peft.merge(other).get_submodule(name).weight  # type: ignore[assignment]
    half = between(one, other, 0.5)
    torch.testing.assert_close(half.get_submodule(name).weight, own + (whole - own) / 2)
    assert (whole - own).abs().max() > 0.01 and "tuning" not in half.card


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The ends have the two models' own flags; in between the statistics are those of the training
    images; what is saved is what was measured."""
    files = [str(tmp_path / f"{place}.safetensors") for place in "ab"]
    for model, file in zip(two(), files, strict=True):
        save_model(model, file, classes=tuple("01234"))
    where = ["--between", *files, "--to", str(tmp_path / "out")]
    assert command.main([*where, *FLAGS, "--at", "0,1", "--save", "0.5"]) == 0
    tree = json.loads((tmp_path / "out/merge.json").read_text())
    assert [row["t"] for row in tree["line"]] == [0.0, 0.5, 1.0]
    data = DATASETS["digits"](
        classes=tuple(range(5)), image_size=32, channels=3, max_per_class=20
    ).load()
    merged = str(tmp_path / "out/merged.safetensors")
    for row, file in zip(tree["line"], [files[0], merged, files[1]], strict=True):
        own = run(parse(["--model", file, *FLAGS]).config, tmp_path / str(row["t"]), quiet=True)
        assert own is not None and own["images"] == len(row["clean"]["flags"])
        attacked = FGSM(eps=0.1)
        found = evaluate(load(file), [data.test.batch(torch.arange(len(data.test)))], [attacked])
        assert row["clean"]["accuracy"] == own["clean"]["accuracy"] == found.clean_accuracy
        robust = own["norms"]["linf"]["robust"]
        assert row["robust"]["accuracy"] == robust["accuracy"] == found.union_accuracy
        assert sorted(row["clean"]["flags"]) == sorted(to_text(found.clean))
    x = data.train.plain().batch(torch.arange(len(data.train))).x
    model = load(merged)
    network = model.backbone
    seen: Tensor = network.conv1(model.normalize(x))  # type: ignore[operator]
    torch.testing.assert_close(network.bn1.running_mean, seen.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    assert "0.5 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"name": "convnext_atto"}, "name resnet18 and convnext_atto"),
        ({"mean": (0.5, 0.5, 0.5)}, "mean "),
        ({"classes": list("56789")}, "classes "),
        ({"num_classes": 4}, r"of one shape in backbone\.fc\.weight, got \(5, 16\) and \(4, 16\)"),
    ],
)
def test_what_is_refused(changed: dict[str, object], told: str) -> None:
    one, name = two()[0], str(changed.pop("name", "resnet18"))
    classes = changed.pop("classes", None)
    config = {key: changed.pop(key) for key in [*changed] if key == "mean"}
    other = tiny(name, config=config | ({"std": (1.0,) * 3} if config else {}), **changed)  # type: ignore[arg-type]
    other.card |= {"classes": classes} if classes else {}
    with pytest.raises(ArgumentError, match=f"`between`: expected .*{told}"):
        between(one, other, 0.5)


def test_a_place_off_the_line() -> None:
    with pytest.raises(ArgumentError, match=r"`t`: expected a number in \[0, 1\], got 1\.5"):
        between(*two(), 1.5)

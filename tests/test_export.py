"""A model that leaves: the same logits from every file, without this package."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file
from tiny_models import SIZES, SMALL, images, tiny
from torch import Tensor, nn

from roli_fast import export as command
from roli_fast import peft
from roli_fast.errors import ArgumentError
from roli_fast.export import export
from roli_fast.models import Classifier, save_model, wrap

pytestmark = pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch's load

FACTS = {"threat": {"norm": "linf", "eps": 4 / 255}, "robust accuracy": {"pgd-10": 0.5}}


def compare(model: Classifier, folder, size: int) -> Tensor:
    """The model's logits of three images, after they were compared with those of every file."""
    x = images(3, 3, size, size)
    expected = model.eval()(x).detach()
    program = torch.export.load(folder / "model.pt2").module()
    torch.testing.assert_close(program(x), expected, atol=1e-5, rtol=1e-5)
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=0)
    return expected


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_weights_open_in_timm_and_programs_give_the_same_logits(name: str, tmp_path) -> None:
    model, size = tiny(name), SIZES[name]
    if "vit" in name:
        peft.apply(model, peft.LoRA(rank=2))
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "lora_b" in parameter_name:
                    parameter.normal_()
    written = list(export(model, tmp_path, image_size=size, classes="abcde", facts=FACTS))
    expected = compare(model, tmp_path, size)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(written)
    network = timm.create_model(name, num_classes=5, **SMALL[name]).eval()
    network.load_state_dict(load_file(tmp_path / "weights.safetensors"), strict=True)
    card = json.loads((tmp_path / "card.json").read_text())
    mean, std = (torch.tensor(card[part])[:, None, None] for part in ("mean", "std"))
    x = images(3, 3, size, size)
    torch.testing.assert_close(network((x - mean) / std), expected, atol=1e-4, rtol=1e-4)
    page = (tmp_path / "README.md").read_text()
    assert page.startswith("---\n") and "| threat | norm linf, eps 0.01569 |" in page
    assert "| robust accuracy | pgd-10 0.5 |" in page and "a, b, c, d, e" in page


class Branches(nn.Module):
    """Asks its images for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)) if float(x.sum()) > 0 else x.amax((2, 3)))


def test_a_network_that_cannot_be_traced(tmp_path) -> None:
    with pytest.raises(ArgumentError, match=r"`model`: expected one that torch\.export traces"):
        export(wrap(Branches()), tmp_path, image_size=8)


def test_the_command(tmp_path, capsys, caplog) -> None:
    """What is no part of a plain network leaves as programs alone."""
    model = tiny()
    peft.apply(model, peft.METHODS["adapter"](reduction=4))  # pyright: ignore
    save_model(model, tmp_path / "best.safetensors", classes=tuple("abcde"))
    where = [str(tmp_path / "best.safetensors"), "--to", str(tmp_path / "out")]
    assert command.main(where) == 2 and "`--image_size`" in caplog.text
    assert command.main([*where, "--image_size", "8"]) == 0
    assert "model.pt2: " in capsys.readouterr().out
    assert compare(model, tmp_path / "out", 8).shape == (3, 5)
    assert not (tmp_path / "out" / "weights.safetensors").exists()

"""A trained model without this package: plain weights, torch.export and ONNX programs, and a card.

python -m roli_fast.export RUN/seed-0/roli --to FOLDER
"""

import argparse
import importlib.util
import json
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from roli_fast import peft
from roli_fast.errors import ArgumentError, RoliFastError, describe
from roli_fast.evaluate.prepare import weight_file
from roli_fast.files import read_json, write_bytes, write_json, write_tensors
from roli_fast.models import Classifier, load
from roli_fast.peft.base import Inserted
from roli_fast.running.command import run_command
from roli_fast.running.folder import CONFIG

logger = logging.getLogger("roli_fast.export")

FILES = {
    "weights.safetensors": "the plain network's state dict, LoRA merged; takes normalised images",
    "model.pt2": "the whole model for torch.export.load; takes images in [0, 1]",
    "model.onnx": "the whole model for ONNX runtimes; takes images in [0, 1]",
    "card.json": "architecture, normalisation, classes, threat and accuracies",
    "README.md": "the same in words, as the Hugging Face hub shows it",
}
"""What an export may hold."""


def export(
    model: Classifier,
    folder: str | Path,
    *,
    image_size: int,
    classes: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Write what runs without this package into `folder`; returns file -> what it is.

    The programs hold resizing, normalisation and network for any batch size, in eval mode. ONNX
    asks for the packages onnx and onnxscript; without them the file is left out, and the log says
    so. Adapters and prompts are no part of a plain network: then there are the programs alone.

    Args:
        model: a classifier, of `load`, `fit` or a training of one's own.
        folder: made where it is missing; files there are replaced.
        image_size: height and width of the images.
        classes: names of the outputs; those of the model's card by default.
        facts: of the training, for the card: threat, accuracies, attack, data.

    Raises:
        ArgumentError: the network cannot be traced.
    """
    folder, written = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {type(module).__name__ for module in model.modules() if isinstance(module, Inserted)}
    plain = (peft.merge(model) if kinds == {"LoraLinear"} else model).eval()
    card = {name: value for name, value in model.card.items() if name != "tuning"}
    card |= {"classes": list(classes) or card.get("classes", []), "image_size": image_size}
    card |= {"roli_fast": dict(facts or {})}
    if kinds <= {"LoraLinear"}:
        state = {n: t.detach().contiguous() for n, t in plain.backbone.state_dict().items()}
        write_tensors(folder / "weights.safetensors", state, {"card": json.dumps(card)})
        written.append("weights.safetensors")
    written += _programs(plain, folder, image_size)
    write_json(folder / "card.json", card)
    text = readme(card, [*written, "card.json"])
    write_bytes(folder / "README.md", text.encode())
    return {name: FILES[name] for name in [*written, "card.json", "README.md"]}


def _programs(model: Classifier, folder: Path, image_size: int) -> list[str]:
    """torch.export's and ONNX' file, as far as they can be made."""
    like = model.normalize.mean
    x = torch.rand(2, len(like), image_size, image_size, device=like.device)
    try:
        batch = {"x": {0: torch.export.Dim("batch")}}
        program = torch.export.export(model, (x,), dynamic_shapes=batch)
    except Exception as error:  # whatever a trace makes of a network
        text = str(error).strip().splitlines()[0]
        fix = "A forward that branches on its images' values cannot leave PyTorch."
        raise ArgumentError(describe("model", "one that torch.export traces", text, fix)) from error
    torch.export.save(program, folder / "model.pt2")
    if missing := [n for n in ("onnx", "onnxscript") if not importlib.util.find_spec(n)]:
        logger.warning("no model.onnx: pip install %s", " ".join(missing))
        return ["model.pt2"]
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own future
        made = torch.onnx.export(program, dynamo=True, verbose=False, **names)
        assert made is not None
        made.save(folder / "model.onnx")
    return ["model.pt2", "model.onnx"]


def readme(card: Mapping[str, Any], written: Sequence[str]) -> str:
    """The model card of the Hugging Face hub."""
    facts, shape = card["roli_fast"], f"{card['image_size']}x{card['image_size']}"
    head = {"library_name": "timm", "pipeline_tag": "image-classification"}
    head |= {"tags": ["adversarial-robustness", "roli_fast"]}
    lines = ["---", yaml.safe_dump(head).strip(), "---", f"# {card['name']}", ""]
    lines += ["An image classifier that was trained to stay right under attack.", ""]
    rows = {"architecture": card["name"], "images": f"{shape}, in [0, 1]"}
    rows |= {"mean": card["mean"], "std": card["std"], "classes": ", ".join(card["classes"])}
    rows |= {name: _words(value) for name, value in facts.items()}
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()), ""]
    lines += [f"- `{name}`: {FILES[name]}" for name in written]
    return "\n".join([*lines, ""])


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(inner)}" for name, inner in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def facts_of(weights: Path) -> dict[str, Any]:
    """What the run around a weight file says of it; empty outside a run."""
    run = next((p for p in weights.parents if (p / CONFIG).is_file()), None)
    test = weights.parent.parent / "test.json"
    if run is None or not (run / "summary.json").is_file() or not test.is_file():
        return {}
    summary, tested = read_json(run / "summary.json"), read_json(test)
    return {
        "method": weights.parent.parent.name,
        "threat": summary.get("threat") or summary["attack"],
        "test images": tested["images"],
        "clean accuracy": tested["clean_accuracy"],
        "robust accuracy": tested["robust_accuracy"],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 done, 2 a mistake)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser("python -m roli_fast.export", description=__doc__)
    parser.add_argument("model", type=Path, help="a run's folder, a part of it, or a weight file")
    parser.add_argument("--to", type=Path, required=True, help="the folder to write")
    parser.add_argument("--image_size", type=int, help="by default that of the run's images")
    given = parser.parse_args(arguments)
    try:
        path = weight_file(given.model) if given.model.is_dir() else given.model
        model = load(path)
        size = given.image_size or model.image_size
        if not size:
            fix = "The file does not tell it."
            raise ArgumentError(describe("--image_size", "a number of pixels", "nothing", fix))
        written = export(model, given.to, image_size=size, facts=facts_of(path))
    except RoliFastError as error:
        logger.error("error: %s", error)
        return 2
    for name, what in written.items():
        print(f"{given.to / name}: {what}")
    return 0


if __name__ == "__main__":
    run_command(main)

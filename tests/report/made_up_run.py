"""A run directory that no training made: every file that a report reads, with known numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = ("cat", "dog & wolf", "<b>owl</b>")
ROBUST = {"roli": (0.66, 0.70), "ranli": (0.60, 0.62)}
CLEAN = {"roli": (0.80, 0.84), "ranli": (0.75, 0.79)}
STAGES = {"roli": ("probe", "finetune"), "ranli": ("ranli",)}
LABEL = "pgd-10"

CONFIG = """\
data: {name: digits, image_size: 16}
model: {name: vit_tiny_patch16_224, weights: null, pretrained: false, options: {depth: 2}}
methods: [roli, ranli]
threat: {norm: linf, eps: 0.03137254901960784}
probe:
  epochs: 1
  tuning: {name: linear}
  objective: {name: adversarial}
  attack: {name: pgd, steps: 7}
  optimizer: {name: sgd, lr: 0.1, weight_decay: 0.001}
  batch_size: 32
finetune:
  epochs: 3
  tuning: {name: full}
  objective: {name: adversarial}
  attack: {name: pgd, steps: 7}
  optimizer: {name: adamw, lr: 2.5e-05, weight_decay: 0.01}
  batch_size: 32
ranli: null
validation: {name: pgd, steps: 10}
test: {name: pgd, steps: 10}
head_init: default
seeds: [0, 1]
note: made up <i>for</i> a test
"""


def write_run(folder: Path, *, analysis: bool = True) -> Path:
    """Two methods, two seeds; `analysis` False leaves analysis.json and examples.npz out."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    write_json(folder / "summary.json", summary())
    packages = {"roli-fast": "0.1.0", "torch": "2.11.0"}
    identity = {"data test images": "abc"}
    environment = {"python": "3.11.7", "device": "cpu", "processor": "x86_64", "threads": 1}
    write_json(
        folder / "environment.json", environment | {"packages": packages, "identity": identity}
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in metrics()))
    for method in STAGES:
        for seed in (0, 1):
            base = folder / f"seed-{seed}" / method
            write_json(base / "test.json", _test(method, seed))
            for number, name in enumerate(STAGES[method], 1):
                write_json(base / f"stage-{number}-{name}" / "result.json", _result(name))
            if analysis:
                write_json(base / "analysis.json", analysis_of(method, seed))
    if analysis:
        write_examples(folder / "seed-0" / "roli" / "examples.npz")
    return folder


def write_json(path: Path, tree: Any) -> None:
    """Write `tree`, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))


def change_json(path: Path, **values: Any) -> None:
    """Put values into a JSON object."""
    write_json(path, json.loads(path.read_text()) | values)


def summary() -> dict[str, Any]:
    """What a training run would have written."""
    pair = {"methods": ["roli", "ranli"], "attack": LABEL, "difference": 0.07}
    pair |= {"test": "paired t, over seeds", "p_value": 0.09}
    return {
        "classes": list(CLASSES),
        "test_images": 400,
        "guessing": 0.4,
        "warnings": [],
        "seeds": [0, 1],
        "attack": {"name": "pgd", "norm": "linf", "eps": 8 / 255, "steps": 10},
        "note": "made up <i>for</i> a test",
        "paper_compat": [],
        "pretrain": None,
        "methods": {method: _method(method) for method in STAGES},
        "comparisons": [pair],
    }


def _method(method: str) -> dict[str, Any]:
    """The worst class of RoLI is the first one, of RanLI the last."""
    values = {"clean": CLEAN[method], LABEL: ROBUST[method]}
    order = [*enumerate(CLASSES)][:: 1 if method == "roli" else -1]
    classes = [
        {"class": name, "label": label, "images": 100 + label}
        | {"accuracy": {"clean": 0.5 + label / 10, LABEL: place / 10}}
        for place, (label, name) in enumerate(order)
    ]
    test = {
        "images": 400,
        "clean_accuracy": float(np.mean(CLEAN[method])),
        "robust_accuracy": {LABEL: float(np.mean(ROBUST[method]))},
        "standard_error": {"clean": 0.02, LABEL: 0.025},
        "sd": {name: float(np.std(own, ddof=1)) for name, own in values.items()},
        "per_class": classes,
    }
    stages = [_result(name) for name in STAGES[method]]
    each = [{"seed": s, "stages": stages, "test": _test(method, s)} for s in (0, 1)]
    return {"stages": stages, "test": test, "per_seed": each}


def _test(method: str, seed: int) -> dict[str, Any]:
    robust = {LABEL: ROBUST[method][seed]}
    return {"images": 400, "clean_accuracy": CLEAN[method][seed], "robust_accuracy": robust}


def _result(name: str) -> dict[str, Any]:
    epochs = {"probe": 1, "finetune": 3, "ranli": 4}[name]
    best = {"best_epoch": epochs - 1, "best_validation_accuracy": 0.64}
    images = {"train_images": 1000 * epochs, "train_seconds": 40.0 * epochs}
    speed = {"train_images_per_second": 25.0, "data_wait_share": 0.031, "passes": 5e6 * epochs}
    return {"name": name, "epochs": epochs, "trainable_parameters": 12345, **best, **images} | speed


def metrics() -> list[dict[str, Any]]:
    """A record for each epoch."""
    return [
        {"seed": seed, "method": method, "stage": stage, "epoch": epoch}
        | {"train_loss": 1.0 / (epoch + 1 + seed), "validation_clean_accuracy": 0.5 + epoch / 10}
        | {"validation_robust_accuracy": 0.4 + epoch / 10 + seed / 100}
        for seed in (0, 1)
        for method, stages in STAGES.items()
        for stage in stages
        for epoch in range(_result(stage)["epochs"])
    ]


def analysis_of(method: str, seed: int) -> dict[str, Any]:
    """What the analysis of one seed would have written."""
    stages = []
    for place, name in enumerate(STAGES[method]):
        moved = 0.0 if name == "probe" else 0.5 + seed / 10
        drift = {"absolute": 2 * moved, "relative": moved, "cosine": 0.9, "cka": 0.8}
        change = {"clean": drift, "adversarial": drift | {"cosine": None}}
        ends = {"start": _point(1.0 + place), "end": _point(2.0 + place + seed)}
        stages.append({"name": name, "lr": 2.5e-05, "epochs": 3, "change": change, **ends})
    points = [(0.0, 0.8), (4 / 255, 0.7), (8 / 255, 0.6 + seed / 10)]
    curve = {"name": method, "attack": LABEL, "norm": "linf", "images": 200}
    curve["expected_robustness"] = {"eps": 8 / 255, "accuracy": 0.7 + seed / 50}
    curve["points"] = [
        {"eps": e, "accuracy": a, "right": round(200 * a), "low": a - 0.1, "high": a + 0.1}
        for e, a in points
    ]
    return {
        "schema": 1,
        "seconds": 1.0,
        "attack": {"label": LABEL, "norm": "linf", "eps": 8 / 255},
        "images": {"train": 64, "validation": 64, "test": 200},
        "notes": [],
        "stages": stages,
        "calibration": {"clean": _fit(None), "adversarial": _fit(0.3)},
        "curve": curve,
        "examples": "examples.npz",
    }


def _point(norm: float) -> dict[str, Any]:
    both = {"clean": 0.5, "adversarial": 0.75}
    found = dict.fromkeys(("residual", "separation", "pairwise_cosine"), both)
    head = {"norm": norm, "rows": [norm / 2, norm / 3], "bias": 0.1}
    return {"head": head, "robust_drift": {"absolute": 1.5, "relative": 0.25}, **found}


def _fit(other: float | None) -> dict[str, Any]:
    """Two bins that hold images, and one of too few to draw."""
    bins = [
        {"low": 0.0, "high": 0.25, "count": 5, "confidence": 0.2, "accuracy": 0.9},
        {"low": 0.25, "high": 0.5, "count": 40, "confidence": 0.4, "accuracy": 0.5},
        {"low": 0.5, "high": 1.0, "count": 155, "confidence": 0.8, "accuracy": 0.6},
    ]
    errors = {"accuracy": 0.6, "mce": None, "nll": 1.1, "brier": 0.2, "bins": bins}
    found = {"temperature": 1.6, "fitted": True, "reason": ""}
    found |= {"validation_images": 120, "test_images": 200}
    found |= {"before": errors | {"ece": 0.12}, "after": errors | {"ece": 0.04}}
    borrowed = None if other is None else errors | {"ece": other}
    return found | {"with_clean_temperature": borrowed}


def evaluation_of() -> dict[str, Any]:
    """What an evaluation of four images in two norms would have written: in linf the second is
    fooled, in l2 the third; the last one is wrong to begin with. With other attacks, other images
    and a curve."""
    entry = {"accuracy": 0.5, "interval_95": [0.4, 0.6]}
    searches = {"linf": "0100", "l2": "0010"}
    answers = {"linf": [0, 2, 1, 1], "l2": [0, 0, 0, 1]}
    norms = {
        norm: {
            "eps": 8 / 255 if norm == "linf" else 0.5,
            "robust": entry | {"predictions": answers[norm]},
            "searches": [{"part": "apgd-ce", "attacked": 3, "fooled": 1, "fooled_flags": flags}],
        }
        for norm, flags in searches.items()
    }
    names = ["cat/1.jpg", "cat/2.jpg", "dog & wolf/1.jpg", "<b>owl</b>/1.jpg"]
    worst = [
        {"class": CLASSES[2], "label": 2, "images": 1, "attacked_as": {CLASSES[1]: 1}}
        | {"accuracy": {"clean": 0.0, "linf": 0.0, "l2": 0.0, "union": 0.0}},
        {"class": CLASSES[1], "label": 1, "images": 1, "attacked_as": {CLASSES[0]: 1}}
        | {"accuracy": {"clean": 1.0, "linf": 1.0, "l2": 0.0, "union": 0.0}},
        {
            "class": CLASSES[0],
            "label": 0,
            "images": 2,
            "attacked_as": {CLASSES[0]: 1, "output 9": 1},
        }
        | {"accuracy": {"clean": 1.0, "linf": 0.5, "l2": 1.0, "union": 0.5}},
    ]
    return {
        "images": 4,
        "data": {"split": "test", "classes": list(CLASSES), "outputs": [0, 1, 2]},
        "model": {"file": "runs/x/seed-0/roli"},
        "attacks": [{"name": "autoattack"}],
        "clean": entry,
        "norms": norms,
        "union": entry,
        "unseen": {
            "attacks": [{"attack": "square", "norm": "l2", "eps": 1, "robust": entry}],
            "union_with_norms": entry,
        },
        "shifts": {
            "corruptions": {"fog": {"1": {"accuracy": 0.5}, "2": {"accuracy": 0.25}}},
            "ood": {"accuracy": 0.125},
        },
        "curves": [
            {
                "attack": "pgd-10",
                "norm": "linf",
                "points": [{"eps": 0, "accuracy": 0.5, "low": 0.4, "high": 0.6}],
            }
        ],
        "per_class": worst,
        "warnings": ["the model has <i>collapsed</i>"],
        "names": names,
        "labels": [0, 0, 1, 2],
    }


def write_examples(path: Path) -> None:
    """Two images of 4 x 4; the first one's change is +eps, the second one's -eps, in one pixel."""
    eps = 8 / 255
    clean = np.full((2, 4, 4, 3), 100, np.uint8)
    delta = np.zeros((2, 4, 4, 3), np.float16)
    delta[0, 0, 0], delta[1, 0, 0] = eps, -eps
    adversarial = (clean + np.rint(255 * delta.astype(np.float32))).astype(np.uint8)
    np.savez(
        path,
        clean=clean,
        adversarial=adversarial,
        delta=delta,
        name=np.array(["test/cat/1.jpg", "test/<b>owl</b>/2.jpg"]),
        label=np.array([0, 2]),
        clean_prediction=np.array([0, 2]),
        adversarial_prediction=np.array([1, 2]),
        unrounded_prediction=np.array([1, 2]),
        clean_confidence=np.array([0.9, 0.8], np.float32),
        adversarial_confidence=np.array([0.6, 0.5], np.float32),
    )

"""Whether a JSON tree has the shape that the page reads; what is wrong with it, in words."""

from typing import Any

NUMBER = "a number or null"
KNOWN = "a number"
TEXT = "text"

Shape = Any
"""NUMBER, KNOWN, TEXT, {key: shape}, or [shape] for a list of such; a key ending in ? may be
missing, and what is there may be null."""

BOTH = {"clean": NUMBER, "adversarial": NUMBER}
POINT = {
    "head": {"norm": NUMBER, "rows": [NUMBER]},
    "residual": BOTH,
    "separation?": BOTH,
    "pairwise_cosine?": BOTH,
    "robust_drift?": {"relative": NUMBER},
}
DRIFT = {"absolute": NUMBER, "relative": NUMBER, "cosine": NUMBER, "cka": NUMBER}
STEP = {"ft_ratio": NUMBER, "predicted?": NUMBER, "actual?": NUMBER, "first_update?": {}}
RANK = {"rank": NUMBER, "frobenius": NUMBER}
STAGE = {
    "name": TEXT,
    "start": POINT,
    "end": POINT,
    "change": {"clean": DRIFT, "adversarial": DRIFT},
    "one_step?": {"clean?": STEP, "adversarial?": STEP},
    "head_scale?": [{"scale": NUMBER}],
    "kernel?": {"P": RANK, "F": RANK, "NTK": RANK, "spectrum?": [NUMBER], "regression?": {}},
}
BIN = {"count": NUMBER, "confidence": NUMBER, "accuracy": NUMBER}
MEASURES = {"ece": NUMBER, "nll": NUMBER, "brier": NUMBER, "bins": [BIN]}
FIT = {
    "temperature": NUMBER,
    "before": MEASURES,
    "after": MEASURES,
    "with_clean_temperature?": MEASURES,
}
CURVE_POINT = {"eps": NUMBER, "accuracy": NUMBER, "low": NUMBER, "high": NUMBER}
CURVE = {"attack": TEXT, "norm": TEXT, "images": NUMBER, "points": [CURVE_POINT]}

ANALYSIS = {
    "attack": {"label": TEXT, "norm?": TEXT, "eps?": NUMBER},
    "images": {"train": NUMBER, "validation": NUMBER},
    "notes?": [TEXT],
    "stages": [STAGE],
    "calibration?": {"clean?": FIT, "adversarial?": FIT},
    "curve?": CURVE,
}
"""Of analysis.json, as far as a page reads it."""


RESULT = {"name": TEXT, "epochs": KNOWN, "train_seconds": KNOWN, "best_epoch?": KNOWN}
"""Of a stage, as result.json and summary.json have it."""

TEST = {"images": KNOWN, "clean_accuracy": KNOWN, "robust_accuracy": {}}

METHOD = {"per_seed": [{"seed": KNOWN, "stages": [RESULT], "test?": TEST}], "test?": TEST}
"""Of summary.json, by the method's name."""

PAIR = {"methods": [TEXT], "attack": TEXT, "difference": KNOWN, "test": TEXT, "p_value": NUMBER}
CELL = {"method": TEXT, "cell": TEXT, "folder": TEXT, "validation_accuracy": NUMBER, "sd": NUMBER}
PRETRAIN = RESULT | {"trainable_parameters": KNOWN}


def wrong_summary(tree: Any) -> str:
    """What is wrong with summary.json; empty for nothing."""
    methods = tree.get("methods")
    shape = {
        "methods": dict.fromkeys(methods, METHOD) if isinstance(methods, dict) else {},
        "seeds": [KNOWN],
        "classes": [TEXT],
        "test_images": KNOWN,
        "pretrain?": PRETRAIN,
        "comparisons?": [PAIR],
        "sweep?": {"cells": [CELL]},
    }
    return wrong(tree, shape)


def wrong(tree: Any, shape: Shape, path: str = "") -> str:
    """ "stages[0].name: expected text, got 3"; empty where `tree` has the `shape`."""
    if isinstance(shape, str):
        number = tree is None or (isinstance(tree, (int, float)) and not isinstance(tree, bool))
        fits = isinstance(tree, str) if shape == TEXT else number
        fits = fits and not (shape == KNOWN and tree is None)
        return "" if fits else f"{path}: expected {shape}, got {tree!r}"
    if isinstance(shape, list):
        if not isinstance(tree, list):
            return f"{path}: expected a list, got {tree!r}"
        found = (wrong(one, shape[0], f"{path}[{i}]") for i, one in enumerate(tree))
        return next(filter(None, found), "")
    if not isinstance(tree, dict):
        return f"{path}: expected fields, got {tree!r}"
    for key, inner in shape.items():
        name = key.removesuffix("?")
        if name != key and tree.get(name) is None:
            continue
        where = f"{path}.{name}" if path else name
        if name not in tree:
            return f"{where} is missing"
        if told := wrong(tree[name], inner, where):
            return told
    return ""

"""What a training run left: which of its models to evaluate, and on which data."""

import logging
import re
from pathlib import Path
from typing import Any

from roli_fast.configuration import read_yaml
from roli_fast.errors import ConfigError, describe
from roli_fast.running.folder import CONFIG

logger = logging.getLogger("roli_fast.evaluate")

_STAGE = re.compile(r"stage-(\d+)-")


def weight_file(folder: Path) -> Path:
    """The one model in a run's folder, or in a part of it: the weights its last stage ended with.

    Raises:
        ConfigError: there is none, or there are several; they are listed.
    """
    if (folder / "best.safetensors").is_file():
        return folder / "best.safetensors"
    last: dict[Path, Path] = {}
    for path in sorted(folder.rglob("best.safetensors"), key=_stage):
        if _STAGE.match(path.parent.name):
            last[path.parent.parent] = path
    finished = [path for path in last.values() if (path.parent / "result.json").is_file()]
    if len(finished) == 1 and len(last) == 1:
        return finished[0]
    if not last:
        fix = "Name a weight file, or a folder that python -m roli_fast.train wrote."
        raise ConfigError(describe("model", "a folder with a trained model", f"'{folder}'", fix))
    names = "\n".join(
        f"  {path}{'' if path in finished else ' (unfinished)'}" for path in last.values()
    )
    fix = f"Choose one with --model:\n{names}"
    raise ConfigError(describe("model", "one finished model", f"{len(last)} in '{folder}'", fix))


def _stage(path: Path) -> tuple[str, int]:
    found = _STAGE.match(path.parent.name)
    return str(path.parent.parent), int(found[1]) if found else 0


def settings_of(path: Path) -> dict[str, Any]:
    """The configuration of the run that a file or folder is part of; empty where there is none.

    It is read as plain YAML: what trained it need not be installed. A config.yaml of something else
    on the way up is passed over; one that cannot be read is told.
    """
    for folder in [path, *path.absolute().parents][:6]:
        if (folder / CONFIG).is_file():
            try:
                tree = read_yaml(folder / CONFIG)
            except ConfigError as error:
                logger.warning("%s It is passed over.", error)
                continue
            if "probe" in tree or "finetune" in tree:
                return tree
    return {}


def as_assessment(tree: dict[str, Any]) -> dict[str, Any]:
    """What an evaluation takes from a run's configuration: data, and norms and radii."""
    out: dict[str, Any] = {}
    if "data" in tree:
        out["data"] = tree["data"]
    threat = tree.get("threat") or {}
    if {"norm", "eps"} <= set(threat):
        out["norm"] = [threat["norm"], *(threat.get("other_norms") or ())]
        out["eps"] = [threat["eps"], *(threat.get("other_eps") or ())]
    return out

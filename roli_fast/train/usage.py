"""The text of `--help`: every field with its default and what its docstring says."""

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from roli_fast.attacks import Attack
from roli_fast.train.config import COMPONENTS, FOLLOWS_THREAT, field_types, to_tree
from roli_fast.train.experiment import Experiment
from roli_fast.train.paper_compat import FAULTS
from roli_fast.train.stage import Stage

USAGE = """\
python -m roli_fast.train [--config FILE | --recipe NAME --data NAME --tuning NAME]
                          [--FIELD VALUE ...] [--sweep FIELD=VALUES ...]
                          [--run_dir DIR] [--resume] [--print_config]

Adversarial linear probing, then adversarial fine-tuning from that head (RoLI), beside the
fine-tune from a fresh head (RanLI). Without --config and --data it runs the quickstart.

  --config FILE     a YAML file, or the name of a packaged one (quickstart)
  --recipe NAME     the RoLI paper's settings for --data and --tuning: roli, ranli, ranli_matched
                    (RanLI with the epochs of both stages of RoLI), compare (all three)
  --tuning NAME     with --recipe: linear, full, bias, lora, adapter or prompt
  --sweep F=VALUES  try every value of field F: --sweep finetune.optimizer.lr=1e-3,1e-4; repeated,
                    every combination. Each method is tested with what validates best
  --run_dir DIR     where everything is written (default: runs/<name>-<time>)
  --resume          continue the interrupted run in --run_dir
  --print_config    print the whole configuration as YAML and stop

Every field can be set on the command line: --threat.eps 4/255 --finetune.epochs 10
--data image_folder --data.root photos --model.name vit_small_patch16_224 --seeds 0,1,2
"""


def help_text() -> str:
    """Usage, the fields of a run, of a stage, and of every component."""
    parts = [USAGE, "Fields of a run:", *_lines(Experiment, "--")]
    parts += [
        "",
        "Fields of a stage (--probe.NAME, --finetune.NAME, --ranli.NAME, --pretrain.NAME):",
    ]
    parts += ["  In brackets the default; a stage's own, where it differs:"]
    parts += [f"    {name}: {own}" for name, own in _stage_defaults()]
    parts += _lines(Stage, "  .")
    parts += ["", "Faults of the RoLI release (--paper_compat all, or some of them):"]
    parts += [_line(name, "", text, None) for name, text in FAULTS.items()]
    for registry in COMPONENTS.values():
        for name in registry:
            parts += ["", f"Fields of the {registry.kind} {name}:"]
            parts += list(_lines(registry[name], "  .")) or ["  (none)"]
    return "\n".join(parts)


def _stage_defaults() -> Iterator[tuple[str, str]]:
    """What the stages of a run change in a plain `Stage`."""
    plain = _flat(to_tree(Stage()))
    for field in fields(Experiment):
        stage = field.default_factory() if callable(field.default_factory) else None
        if isinstance(stage, Stage):
            own = {k: v for k, v in _flat(to_tree(stage)).items() if plain.get(k, v) != v}
            if own:
                yield field.name, ", ".join(f"{k} {v}" for k, v in own.items())


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = value
    return out


def _lines(kind: type, prefix: str) -> Iterator[str]:
    texts = descriptions(kind)
    types = field_types(kind)
    for field in fields(kind):
        if field.name not in types:
            continue
        inner = types[field.name]
        if is_dataclass(inner) and inner not in COMPONENTS and inner is not Stage:
            yield from _lines(inner, f"{prefix}{field.name}.")  # type: ignore[arg-type]
        else:
            follows = issubclass(kind, Attack) and field.name in FOLLOWS_THREAT
            default = "null in a run" if follows else _default(field)
            yield _line(f"{prefix}{field.name}", default, texts.get(field.name, ""), inner)


def _line(flag: str, default: str, text: str, kind: Any) -> str:
    if kind in COMPONENTS:
        text += f" One of: {', '.join(COMPONENTS[kind].names())}."
    body = f"{text} [{default}]" if default else text
    indent = " " * 28
    wrapped = textwrap.fill(body, 100, initial_indent=indent, subsequent_indent=indent)
    head = f"  {flag}"
    return f"{head:<27} {wrapped.lstrip()}" if len(head) < 28 else f"{head}\n{wrapped}"


def _default(field: Field[Any]) -> str:
    if field.default is not MISSING:
        value = field.default
    elif field.default_factory is not MISSING:
        value = field.default_factory()
    else:
        return "required"
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, Stage):
        return ""
    for base, registry in COMPONENTS.items():
        if isinstance(value, base):
            return registry.name_of(type(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def descriptions(kind: type) -> dict[str, str]:
    """Field -> text of the `Args:` section, the bases' fields included."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        section = re.search(
            r"^Args:\n(.*?)(?=^\S|\Z)", inspect.cleandoc(base.__doc__ or ""), re.M | re.S
        )
        if section:
            for name, text in re.findall(
                r"^ {4}(\w+): (.*?)(?=^ {4}\S|\Z)", section[1], re.M | re.S
            ):
                found[name] = " ".join(text.split())
    return found

"""adapter_config.json of Hugging Face PEFT: what of it is read, refused and written."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roli_fast.errors import CheckpointError, describe
from roli_fast.files import naming, read_json

READ = frozenset(
    ("peft_type", "bias", "r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern")
)
"""Fields that are read, beside `init_lora_weights`, which is checked."""

NO_MATTER = frozenset(
    (
        # which layers were adapted: the tensors' names tell
        *("target_modules", "exclude_modules", "modules_to_save"),
        *("layers_to_transform", "layers_pattern"),
        *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode"),
        *("peft_version", "megatron_core", "eva_config"),
        "qalora_group_size",  # of use_qalora, which is refused
    )
)
"""Fields whose value changes nothing in W + alpha / r * B A."""

HARMLESS_INITS = (True, False, "gaussian", "eva", "orthogonal")
"""Initial values that leave the base weights alone; the others (pissa, olora, ...) change them."""


def read_config(path: Path) -> dict[str, Any]:
    """The configuration, when it means W + alpha / r * B A and nothing else.

    Raises:
        CheckpointError: a missing or damaged file, or a field that is not supported, by name.
    """
    if not path.is_file():
        raise CheckpointError(
            describe("folder", "one with adapter_config.json", f"'{path.parent}'")
        )
    with naming(path, CheckpointError, "adapter_config.json", "JSON that means plain LoRA"):
        config = read_json(path)
        _check(config)
        return config


def _check(config: Any) -> None:
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        got = config.get("peft_type") if isinstance(config, dict) else config
        raise CheckpointError(describe("peft_type", "LORA", repr(got)))
    _check_numbers(config)
    if config.get("bias", "none") != "none":
        raise _unsupported(config, "bias", "'none'")
    if config.get("init_lora_weights", True) not in HARMLESS_INITS:
        fix = "Convert it with PEFT (path_initial_model_for_weight_conversion)."
        raise _unsupported(
            config, "init_lora_weights", "one that leaves the base weights alone", fix
        )
    for name, value in config.items():
        if value and name not in READ | NO_MATTER | {"init_lora_weights"}:
            raise _unsupported(config, name, "it unset, as plain LoRA has it")


def _check_numbers(config: Mapping[str, Any]) -> None:
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    for name, pattern in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
        if not isinstance(pattern, dict):
            raise _unsupported(config, name, "{layer: number}")
        for key in pattern:
            if not re.fullmatch(r"[\w.]+", key):
                expected = "names of layers or their ends (no regular expressions)"
                raise CheckpointError(describe(name, expected, repr(key)))
    for name, pattern in (("r", ranks), ("lora_alpha", alphas)):
        for value in (config.get(name), *pattern.values()):
            kinds = int if name == "r" else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
                raise CheckpointError(describe(name, "a number > 0", repr(value)))
    dropout = config.get("lora_dropout", 0.0)
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise _unsupported(config, "lora_dropout", "a number in [0, 1)")


def _unsupported(
    config: Mapping[str, Any], name: str, expected: str, fix: str = ""
) -> CheckpointError:
    return CheckpointError(describe(name, expected, repr(config.get(name)), fix))


def numbers_of(config: Mapping[str, Any], layer: str) -> tuple[int, float]:
    """(rank, alpha) of the layer: the first pattern that is its name or its end, or the default."""

    def value(pattern: Mapping[str, Any] | None, default: Any) -> Any:
        ends = (v for key, v in (pattern or {}).items() if f".{layer}".endswith(f".{key}"))
        return next(ends, default)

    rank = value(config.get("rank_pattern"), config["r"])
    return rank, value(config.get("alpha_pattern"), config["lora_alpha"])


def make_config(
    numbers: Mapping[str, tuple[int, float]], *, dropout: float, head: str, base: tuple[str, str]
) -> dict[str, Any]:
    """What PEFT reads to open the adapter.

    Args:
        numbers: layer -> (rank, alpha).
        dropout: of all layers.
        head: name of the layer that the adapter replaces as a whole.
        base: module and class of the network, which PEFT shows and does not use.
    """
    rank, alpha = next(iter(numbers.values()))
    return {
        "peft_type": "LORA",
        "auto_mapping": {"parent_library": base[0], "base_model_class": base[1]},
        "base_model_name_or_path": None,
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "rank_pattern": {name: r for name, (r, _) in numbers.items() if r != rank},
        "alpha_pattern": {name: a for name, (_, a) in numbers.items() if a != alpha},
        "target_modules": list(numbers),
        "modules_to_save": [head],
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }

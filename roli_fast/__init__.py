"""Fast adversarially robust fine-tuning of pretrained vision models.

    >>> from roli_fast import PGD, models
    >>> model = models.create(models.Model("resnet18"), num_classes=10)
    >>> x_adv = PGD(eps=8 / 255, steps=10)(model, x, y)

Ops, attacks and the engine need torch alone and load with the package. `models`, `data`, `peft`,
`evaluate` and `train` bring timm and torchvision and load when they are imported.
`roli_fast.fit(network, train, test)` makes a network robust, and
`python -m roli_fast` names the commands.
"""

import importlib
from typing import TYPE_CHECKING, Any

from roli_fast.spinning import limit_spinning

__version__ = "0.1.0"

limit_spinning()  # before torch is imported

from roli_fast import attacks as attacks  # noqa: E402
from roli_fast import engine as engine  # noqa: E402
from roli_fast import errors as errors  # noqa: E402
from roli_fast import losses as losses  # noqa: E402
from roli_fast import norms as norms  # noqa: E402
from roli_fast import ops as ops  # noqa: E402
from roli_fast.attacks import PGD as PGD  # noqa: E402
from roli_fast.attacks import AutoAttack as AutoAttack  # noqa: E402
from roli_fast.engine import InputGradient as InputGradient  # noqa: E402
from roli_fast.errors import RoliFastError as RoliFastError  # noqa: E402
from roli_fast.threat import ThreatModel as ThreatModel  # noqa: E402

if TYPE_CHECKING:
    from roli_fast import data as data
    from roli_fast import evaluate as evaluate
    from roli_fast import models as models
    from roli_fast import peft as peft
    from roli_fast import train as train
    from roli_fast.train.fit import Fitted as Fitted
    from roli_fast.train.fit import fit as fit


def __getattr__(name: str) -> Any:
    """What brings timm and torchvision loads when it is asked for."""
    if name in ("fit", "Fitted"):
        return getattr(importlib.import_module("roli_fast.train.fit"), name)
    if name in ("data", "evaluate", "models", "peft", "train"):
        return importlib.import_module(f"roli_fast.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

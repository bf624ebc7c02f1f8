"""Fast adversarially robust fine-tuning of pretrained vision models.

    >>> from roli_fast import PGD, models
    >>> model = models.create(models.Model("resnet18"), num_classes=10)
    >>> x_adv = PGD(eps=8 / 255, steps=10)(model, x, y)

Ops, attacks and the engine need torch alone and load with the package. `models`, `data`, `peft`,
`evaluate` and `train` bring timm and torchvision and load when they are imported.
`python -m roli_fast.train` runs the whole job; `python -m roli_fast.doctor` shows what was built.
"""

from roli_fast import attacks as attacks
from roli_fast import engine as engine
from roli_fast import errors as errors
from roli_fast import losses as losses
from roli_fast import norms as norms
from roli_fast import ops as ops
from roli_fast.attacks import PGD as PGD
from roli_fast.engine import InputGradient as InputGradient
from roli_fast.errors import RoliFastError as RoliFastError
from roli_fast.threat import ThreatModel as ThreatModel

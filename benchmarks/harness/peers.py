"""PGD of the libraries that users pick today, each called the way its manual says.

pip install -e '.[bench]'; pip install --no-deps torchattacks   # it pins an old requests
"""

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from harness.plain import EPS, STEP_SIZE

Attack = Callable[[Tensor, Tensor], object]
"""(x, y) -> adversarial images, in whatever the library returns."""


class Missing(Exception):
    """A candidate that cannot be run here; the text says why."""


def library(module: str, package: str) -> Any:
    """The module, or `Missing`.

    Libraries that are years old warn on import of what newer ones have renamed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        raise Missing(f"not installed: {package} ({error})") from error


def torchattacks(model: nn.Module, steps: int, *, frozen: bool = False) -> Attack:
    """PGD of torchattacks; `frozen`, with the weights frozen by hand as few users do."""
    peer = library("torchattacks", "torchattacks")
    model.requires_grad_(not frozen)
    return peer.PGD(model, eps=EPS, alpha=STEP_SIZE, steps=steps, random_start=True)


def foolbox(model: nn.Module, steps: int) -> Attack:
    """LinfPGD of foolbox."""
    peer = library("foolbox", "foolbox")
    fmodel = peer.PyTorchModel(model, bounds=(0, 1), device=next(model.parameters()).device)
    attack = peer.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=steps, random_start=True)
    return lambda x, y: attack(fmodel, x, y, epsilons=EPS)


def art(model: nn.Module, steps: int) -> Attack:
    """ProjectedGradientDescent of the Adversarial Robustness Toolbox; takes and returns numpy."""
    attacks = library("art.attacks.evasion", "adversarial-robustness-toolbox")
    estimators = library("art.estimators.classification", "adversarial-robustness-toolbox")
    made: dict[torch.Size, Any] = {}
    *_, last = (part for part in model.modules() if isinstance(part, nn.Linear))

    def run(x: Tensor, y: Tensor) -> object:
        if x.shape not in made:
            estimator = estimators.PyTorchClassifier(
                model,
                loss=nn.CrossEntropyLoss(),
                input_shape=tuple(x.shape[1:]),
                nb_classes=last.out_features,
                clip_values=(0.0, 1.0),
                device_type="gpu" if x.is_cuda else "cpu",
            )
            made[x.shape] = attacks.ProjectedGradientDescent(
                estimator,
                eps=EPS,
                eps_step=STEP_SIZE,
                max_iter=steps,
                num_random_init=1,
                batch_size=len(x),
                verbose=False,
            )
        return made[x.shape].generate(x.cpu().numpy(), y.cpu().numpy())

    return run


def peft_lora(model: Any, layers: tuple[str, ...], rank: int, dropout: float = 0.0) -> Any:
    """Hugging Face PEFT's LoRA on the same layers; the head trains too."""
    peer = library("peft", "peft")
    config = peer.LoraConfig(
        r=rank, lora_alpha=rank, lora_dropout=dropout, target_modules=list(layers)
    )
    adapted = peer.get_peft_model(model, config)
    model.head.requires_grad_(True)
    return adapted

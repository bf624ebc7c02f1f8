"""The parts of compat.autoattack: components with the attributes that users set, log, device."""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from roli_fast.attacks import APGD, APGDT, FAB, FABT, Attack, Square
from roli_fast.compat.original_draws import with_original_draws
from roli_fast.engine import bound
from roli_fast.engine.input_gradient import Model
from roli_fast.errors import ArgumentError, describe
from roli_fast.threat import Bounds


@dataclass(slots=True)
class Common:
    """What every component has. `norm` is the original's: "Linf", "L2" or "L1"; `seed` is there to
    be set, and as in the original the evaluation's own takes its place."""

    norm: str
    eps: float
    bounds: Bounds
    rng: Literal["native", "official"]
    seed: int | None = None

    def _threat(self) -> dict[str, Any]:
        return dict(norm=self.norm.lower(), eps=self.eps, bounds=self.bounds)

    def _drawn(self, attack: Attack, seed: int) -> Attack:
        return with_original_draws(attack, seed) if self.rng == "official" else attack


@dataclass(slots=True)
class APGDComponent(Common):
    """`AutoAttack.apgd`."""

    n_restarts: int = 5
    n_iter: int = 100
    eot_iter: int = 1
    thr_decr: float = 0.75
    use_largereps: bool = False
    loss: str = "ce"

    def attack(self, seed: int) -> Attack:
        return self._drawn(APGD(loss=self.loss, **self._settings()), seed)

    def _settings(self) -> dict[str, Any]:
        return self._threat() | dict(
            restarts=self.n_restarts,
            steps=self.n_iter,
            eot=self.eot_iter,
            rho=self.thr_decr,
            large_radius=self.use_largereps,
        )


@dataclass(slots=True)
class TargetedAPGDComponent(APGDComponent):
    """`AutoAttack.apgd_targeted`."""

    n_restarts: int = 1
    loss: str = "dlr-targeted"
    n_target_classes: int = 9

    def attack(self, seed: int) -> Attack:
        loss = self.loss.removesuffix("-targeted")
        attack = APGDT(targets=self.n_target_classes, loss=loss, **self._settings())
        return self._drawn(attack, seed)


@dataclass(slots=True)
class FABComponent(Common):
    """`AutoAttack.fab`, plain and targeted; in the original targeted FAB never restarts."""

    n_restarts: int = 5
    n_iter: int = 100
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    targeted: bool = False
    n_target_classes: int = 9

    def attack(self, seed: int) -> Attack:
        settings = self._threat()
        settings |= dict(
            steps=self.n_iter,
            alpha_max=self.alpha_max,
            eta=self.eta,
            beta=self.beta,
            minimal=False,
        )
        if self.targeted:
            return self._drawn(FABT(targets=self.n_target_classes, **settings), seed)
        return self._drawn(FAB(restarts=self.n_restarts, **settings), seed)


@dataclass(slots=True)
class SquareComponent(Common):
    """`AutoAttack.square`."""

    n_restarts: int = 1
    n_queries: int = 5000
    p_init: float = 0.8
    loss: str = "margin"
    rescale_schedule: bool = False

    def attack(self, seed: int) -> Attack:
        attack = Square(
            restarts=self.n_restarts,
            n_queries=self.n_queries,
            p_init=self.p_init,
            loss=self.loss,
            rescale_schedule=self.rescale_schedule,
            **self._threat(),
        )
        return self._drawn(attack, seed)


class Log:
    """Lines to standard output, and to the end of a file."""

    def __init__(self, path: str | Path | None) -> None:
        self._logger = logging.Logger("roli_fast.compat.autoattack", logging.INFO)
        self._logger.addHandler(logging.StreamHandler(sys.stdout))
        self._path = None if path is None else Path(path)

    def log(self, line: str) -> None:
        """One more line."""
        self._logger.info("%s", line)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def usable_device(
    device: str | torch.device, model: Model, log: Callable[[str], None]
) -> torch.device:
    """The device to send images to.

    Args:
        device: as the user says it.
        model: its parameters have to be there.
        log: told where "cuda" becomes "cpu", because there is none.

    Raises:
        ArgumentError: the model is elsewhere.
    """
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        log("no CUDA device is available: running on the CPU")
        device = torch.device("cpu")
    module = bound(model).module
    weight = None if module is None else next(module.parameters(), None)
    if weight is None:
        return device
    index_differs = device.index is not None and device.index != weight.device.index
    if weight.device.type != device.type or (device.type == "cuda" and index_differs):
        fix = f"Set device='{weight.device}', or move the model there."
        expected = f"the model's device, {weight.device}"
        raise ArgumentError(describe("device", expected, str(device), fix))
    return device

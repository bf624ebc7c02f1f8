"""What all attacks with torchattacks' interface share: modes, normalisation, device, files."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader

from roli_fast.attacks import AttackResult
from roli_fast.compat.torchattacks import files
from roli_fast.compat.torchattacks.view import Modes, View, without_rounding
from roli_fast.engine import SearchModel, bound
from roli_fast.engine.input_gradient import Model, check_tensor
from roli_fast.errors import ArgumentError, describe

logger = logging.getLogger("roli_fast.compat")

TargetMap = Callable[[Tensor, Tensor], Tensor]


class Attack:
    """Base of the attacks here. Not meant to be subclassed for attacks of your own.

    Attributes may be changed between calls (`attack.eps = 4 / 255`).

    Args:
        name: the attack's.
        model: images (B, ...) -> logits (B, C).
    """

    generator: Generator | None = None
    """Source of the random starts; None takes torch's global generator, a number a search."""

    def __init__(self, name: str, model: Model) -> None:
        self.attack = name
        self.model_name = ""
        self.set_model(model)
        inner = bound(model).module
        first = next(inner.parameters(), None) if inner is not None else None
        self.device: torch.device | None = None if first is None else first.device
        self.attack_mode = "default"
        self.supported_mode = ["default"]
        self.targeted = False
        self.normalization_used: dict[str, Tensor] | None = None
        self._target_map: TargetMap | None = None
        self._kth_min = 1
        self._normalize: nn.Module | None = None
        self._modes = Modes()
        self._return_type = "float"

    def search(
        self, images: Tensor, labels: Tensor | None, sample_ids: Tensor | None = None
    ) -> AttackResult:
        """The search itself, on images in [0, 1] on the right device."""
        raise NotImplementedError

    def __call__(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """Adversarial images for a batch.

        Args:
            inputs: images (B, ...) in [0, 1], or normalised where `set_normalization_used` says so.
            labels: int64 (B,); the targets in the mode of `set_mode_targeted_by_label`.

        Returns:
            Images in the form of `inputs`, on `device`.

        Raises:
            ArgumentError: images outside [0, 1] (the usual cause: normalised, and not said so).
        """
        found = self.run(inputs, labels).x_adv
        return files.to_type(self.in_form(found), self._return_type)

    def run(
        self, inputs: Tensor, labels: Tensor | None, sample_ids: Tensor | None = None
    ) -> AttackResult:
        """As a call, with cost and flags; its images are in [0, 1]."""
        check_tensor("inputs", inputs)
        images = inputs.detach().to(self.device)
        if self.normalization_used is not None:
            images = without_rounding(self.inverse_normalize(images))
        if labels is not None:
            check_tensor("labels", labels)
            labels = labels.detach().to(self.device)
        return self.search(images, labels, sample_ids)

    def in_form(self, images: Tensor) -> Tensor:
        """Images in [0, 1] in the form of a call's inputs."""
        return images if self.normalization_used is None else self.normalize(images)

    def view(self, modes: Modes | None = None) -> Model:
        """The model as a search sees it: for images in [0, 1], in the modes asked for."""
        modes = modes or self._modes
        if self._normalize is None and modes == Modes():
            return self.model
        if isinstance(self.model, SearchModel):
            inner = View(self.model.model, self._normalize, modes)
            return replace(self.model, model=inner)
        return View(self.model, self._normalize, modes)

    def set_model(self, model: Model) -> None:
        """Attack another model."""
        self.model = model
        self.model_name = type(model).__name__

    def set_device(self, device: torch.device | str) -> None:
        """Where inputs and labels are moved to."""
        self.device = torch.device(device)

    def set_normalization_used(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Say that inputs are normalised, (x - mean) / std per channel.

        The attack works on x in [0, 1], whose units eps has, and returns normalised images.
        """
        from roli_fast.models import Normalize  # brings timm: only where it is needed

        self._normalize = Normalize([float(v) for v in mean], [float(v) for v in std])
        shape = (1, -1, 1, 1)
        self.normalization_used = {
            "mean": self._normalize.mean.reshape(shape),
            "std": self._normalize.std.reshape(shape),
        }

    def normalize(self, inputs: Tensor) -> Tensor:
        """(x - mean) / std."""
        assert self._normalize is not None, "set_normalization_used comes first"
        return self._normalize.to(inputs.device)(inputs)

    def inverse_normalize(self, inputs: Tensor) -> Tensor:
        """x * std + mean."""
        assert self.normalization_used is not None, "set_normalization_used comes first"
        mean, std = (self.normalization_used[k].to(inputs.device) for k in ("mean", "std"))
        if inputs.ndim != 4 or inputs.shape[1] != mean.shape[1]:
            expected = f"images (B, {mean.shape[1]}, H, W)"
            raise ArgumentError(describe("inputs", expected, f"shape {tuple(inputs.shape)}"))
        return inputs * std.to(inputs.dtype) + mean.to(inputs.dtype)

    def set_model_training_mode(
        self,
        model_training: bool = False,
        batchnorm_training: bool = False,
        dropout_training: bool = False,
    ) -> None:
        """The model's modes during an attack; by default all of it is in eval mode.

        Args:
            model_training: train mode, but for what the other two leave in eval mode.
            batchnorm_training: BN too, by the batch's statistics; the running ones stay put.
            dropout_training: dropout too; its masks are drawn from torch's global generator.
        """
        self._modes = Modes(model_training, batchnorm_training, dropout_training)

    def set_return_type(self, type: str) -> None:
        """ "float" for images in [0, 1], "int" for uint8 (as torchattacks had it before 3.5)."""
        if type == "int" and self.normalization_used is not None:
            fix = "Normalised images have no uint8 form."
            raise ArgumentError(describe("type", "'float'", "'int'", fix))
        files.check_type(type)
        self._return_type = type

    def get_mode(self) -> str:
        """ "default", or "targeted(...)"."""
        return self.attack_mode

    def set_mode_default(self) -> None:
        """Away from the labels."""
        self.attack_mode, self.targeted = "default", False
        logger.info("attack mode is 'default'")

    def set_mode_targeted_by_function(
        self, target_map_function: TargetMap, quiet: bool = False
    ) -> None:
        """Towards `target_map_function(images, labels)`, classes (B,); images are in [0, 1]."""
        self._set_targeted("targeted(custom)", quiet)
        self._target_map = target_map_function

    def set_mode_targeted_random(self, quiet: bool = False) -> None:
        """Towards a wrong class drawn for each image at each call."""
        self._set_targeted("targeted(random)", quiet)

    def set_mode_targeted_least_likely(self, kth_min: int = 1, quiet: bool = False) -> None:
        """Towards the wrong class of `kth_min`-th lowest clean logit."""
        if not isinstance(kth_min, int) or kth_min < 1:
            raise ArgumentError(describe("kth_min", "an integer >= 1", repr(kth_min)))
        self._set_targeted("targeted(least-likely)", quiet)
        self._kth_min = kth_min

    def set_mode_targeted_by_label(self, quiet: bool = False) -> None:
        """Towards the labels of the call, which are then targets."""
        self._set_targeted("targeted(label)", quiet)

    def _set_targeted(self, mode: str, quiet: bool) -> None:
        if "targeted" not in self.supported_mode:
            expected = "an attack that aims (FGSM, PGD and their relatives)"
            raise ArgumentError(describe("mode", expected, f"{mode} of {self.attack}"))
        self.attack_mode, self.targeted = mode, True
        logger.log(logging.DEBUG if quiet else logging.INFO, "attack mode is '%s'", mode)

    def save(  # noqa: PLR0913 - torchattacks' arguments
        self,
        data_loader: DataLoader[Any],
        save_path: str | None = None,
        verbose: bool = True,
        return_verbose: bool = False,
        save_predictions: bool = False,
        save_clean_inputs: bool = False,
        save_type: str = "float",
    ) -> tuple[float, float, float] | None:
        """Attack a loader's batches, and write them to a file that `load` and torchattacks read.

        Args:
            data_loader: batches (inputs, labels).
            save_path: the file, written once at the end; None writes none.
            verbose: log robust accuracy and distance after each batch.
            return_verbose: return them.
            save_predictions: keep the predicted classes too.
            save_clean_inputs: keep the inputs too.
            save_type: "float", or "int" for uint8, a quarter of the size.

        Returns:
            Robust accuracy in percent, mean l2 distance of the images that fool (in [0, 1] units;
            NaN where none does), and the last batch's seconds; None without `return_verbose`.
        """
        files.check_type(save_type, "save_type")
        say = logger.info if verbose else logger.debug
        kept, numbers = files.collect(self, data_loader, say)
        if save_path is not None:
            names = ["adv_inputs", "labels"]
            names += ["preds"] if save_predictions else []
            names += ["clean_inputs"] if save_clean_inputs else []
            files.write(save_path, {name: kept[name] for name in names}, save_type)
        return numbers if return_verbose else None

    load = staticmethod(files.load)

    def __repr__(self) -> str:
        hidden = ("model", "attack", "supported_mode", "generator")
        shown = {
            name: value
            for name, value in vars(self).items()
            if not name.startswith("_") and name not in hidden
        }
        shown["normalization_used"] = self.normalization_used is not None
        return f"{self.attack}({', '.join(f'{name}={value}' for name, value in shown.items())})"

"""The base of all attacks with torchattacks' interface: modes, targets, normalisation, device."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader

from roli_fast.attacks.objective import choose, most_likely_others
from roli_fast.compat.peers import UserAttributes, clean_logits
from roli_fast.compat.torchattacks import files
from roli_fast.compat.view import Modes, View, kept_buffers
from roli_fast.engine import InputGradient, SearchModel, bound
from roli_fast.engine.input_gradient import Model
from roli_fast.errors import ArgumentError, check_choice, describe
from roli_fast.threat import as_pixels, check_images

logger = logging.getLogger("roli_fast.compat")

TargetMap = Callable[[Tensor, Tensor | None], Tensor]


def also_of_parts(setter: Callable[..., None]) -> Callable[..., None]:
    """A setter that sets it for the attacks that this one holds in its attributes too."""

    @functools.wraps(setter)
    def both(self: "Attack", *args: Any, **named: Any) -> None:
        setter(self, *args, **named)
        for part in self._parts:
            getattr(part, setter.__name__)(*args, **named)

    return both


class Attack(UserAttributes):
    """Base of the attacks here, and of your own: overridden `forward` and `get_logits` are called.

    Attributes may be changed between calls (`attack.eps = 4 / 255`).

    Args:
        name: the attack's.
        model: images (B, ...) -> logits (B, C).
    """

    generator: Generator | None = None
    """Source of the random starts; None takes torch's global generator, a number a search."""

    def __init__(self, name: str, model: Model) -> None:
        self.attack = name
        self.set_model(model)
        inner = bound(model).module
        first = None if inner is None else next(inner.parameters(), None)
        self.device: torch.device | None = None if first is None else first.device
        self.attack_mode = "default"
        self.supported_mode = ["default"]
        self.targeted = False
        self.normalization_used: dict[str, Tensor] | None = None
        self._target_map_function: TargetMap | None = None
        self._kth_min = 1
        self._in_pixels = False  # whether images are in [0, 1] now, though calls' are normalised
        self._modes = Modes()
        if type(inner).__name__ == "RobModel":  # MAIR's, which normalises by itself
            mean, std = (getattr(inner, name, None) for name in ("mean", "std"))
            if mean is not None and std is not None and ((mean != 0).all() or (std != 1).all()):
                self.set_normalization_used(mean, std)

    if TYPE_CHECKING:  # the attributes of each attack

        def __getattr__(self, name: str) -> Any: ...

    @property
    def _parts(self) -> list["Attack"]:
        """The attacks in its attributes, in lists and dicts too."""
        held: list[Any] = []
        for value in vars(self).values():
            values = value.values() if isinstance(value, Mapping) else value
            held += values if isinstance(value, (list, tuple, Mapping)) else [value]
        return [part for part in held if isinstance(part, Attack)]

    def forward(
        self, inputs: Tensor, labels: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """What a call does, on images in [0, 1] with the model in its modes; to be overridden."""
        raise NotImplementedError

    def get_logits(
        self, inputs: Tensor, labels: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Logits (B, C) of images in [0, 1] during a call, else of images in the form of a call's.

        Every pass of an attack goes through it where it is overridden.
        """
        model = self.model.model if isinstance(self.model, SearchModel) else self.model
        return model(self.normalize(inputs) if self._in_pixels else inputs)

    def __call__(
        self, inputs: Tensor, labels: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Adversarial images for a batch.

        Args:
            inputs: images (B, ...) in [0, 1], or normalised where `set_normalization_used` says so.
            labels: int64 (B,); the targets in the mode of `set_mode_targeted_by_label`.
            *args: handed to an overridden `forward`.
            **kwargs: handed to it too.

        Returns:
            Images in the form of `inputs`, on `device`.

        Raises:
            ArgumentError: images outside [0, 1] (the usual cause: normalised, and not said so).
        """
        images = inputs.detach().to(self.device)
        labels = labels if labels is None else labels.detach().to(self.device)
        normalised = self.normalization_used is not None and not self._in_pixels
        if normalised:
            images = check_images(self.inverse_normalize(images), (0.0, 1.0))
        with self._pixels(normalised), self._model_in_its_modes():
            found = self.forward(images, labels, *args, **kwargs).detach()
        return self.normalize(found) if normalised else found

    @contextlib.contextmanager
    def _model_in_its_modes(self) -> Iterator[None]:
        """Within, the model is as an overridden `forward` expects it; our own attacks see to it by
        themselves."""
        with contextlib.ExitStack() as inner:
            if self._modes.model_training:
                inner.enter_context(kept_buffers(bound(self.model).module))
            if self.overrides("forward"):
                view = View(bound(self.model).model, self._logits_of_pixels, self._modes)
                inner.enter_context(InputGradient(view))
            yield

    @contextlib.contextmanager
    def _pixels(self, normalised: bool) -> Iterator[None]:
        """Within, this attack and its parts are given images in [0, 1]."""
        told = [one for one in self._family() if normalised and not one._in_pixels]
        try:
            for one in told:
                one._in_pixels = True
            yield
        finally:
            for one in told:
                one._in_pixels = False

    def _family(self) -> Iterator["Attack"]:
        yield self
        for part in self._parts:
            yield from part._family()

    def view(self) -> Model:
        """The model as a search sees it: for images in [0, 1], in the modes asked for."""
        overridden = self.overrides("get_logits") or self.overrides("normalize")
        if self.normalization_used is None and self._modes == Modes() and not overridden:
            return self.model
        view = View(bound(self.model).model, self._logits_of_pixels, self._modes)
        return replace(self.model, model=view) if isinstance(self.model, SearchModel) else view

    def _logits_of_pixels(self, images: Tensor) -> Tensor:
        with self._pixels(self.normalization_used is not None):
            return self.get_logits(images)

    @also_of_parts
    def set_model(self, model: Model) -> None:
        """Attack another model."""
        self.model = model
        self.model_name = type(model).__name__

    @also_of_parts
    def set_device(self, device: torch.device | str) -> None:
        """Where inputs and labels are moved to."""
        self.device = torch.device(device)

    @also_of_parts
    def set_normalization_used(self, mean: Any, std: Any) -> None:
        """Say that inputs are normalised, (x - mean) / std per channel.

        The attack works on x in [0, 1], whose units eps has, and returns normalised images.
        """
        self.normalization_used = {
            name: torch.as_tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1)
            for name, values in (("mean", mean), ("std", std))
        }

    def normalize(self, inputs: Tensor) -> Tensor:
        """(x - mean) / std."""
        mean, std = self._mean_and_std(inputs)
        return (inputs - mean) / std

    def inverse_normalize(self, inputs: Tensor) -> Tensor:
        """x * std + mean."""
        mean, std = self._mean_and_std(inputs)
        return inputs * std + mean

    def _mean_and_std(self, inputs: Tensor) -> list[Tensor]:
        used = self.normalization_used
        assert used is not None, "set_normalization_used was not called"
        for name in ("mean", "std"):
            used[name] = used[name].to(inputs.device)  # once: a copy would not be recorded
        return [used[name].to(inputs.dtype) for name in ("mean", "std")]

    @also_of_parts
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

    def get_mode(self) -> str:
        """ "default", or "targeted(...)"."""
        return self.attack_mode

    @also_of_parts
    def set_mode_default(self) -> None:
        """Away from the labels."""
        self.attack_mode, self.targeted = "default", False
        logger.info("attack mode is 'default'")

    @also_of_parts
    def set_mode_targeted_by_function(
        self, target_map_function: TargetMap, quiet: bool = False
    ) -> None:
        """Towards `target_map_function(images, labels)`, classes (B,); images are in [0, 1]."""
        self._set_targeted("targeted(custom)", target_map_function, quiet)

    @also_of_parts
    def set_mode_targeted_random(self, quiet: bool = False) -> None:
        """Towards a wrong class drawn for each image at each call."""
        self._set_targeted("targeted(random)", self.get_random_target_label, quiet)

    @also_of_parts
    def set_mode_targeted_least_likely(self, kth_min: int = 1, quiet: bool = False) -> None:
        """Towards the wrong class of `kth_min`-th lowest clean logit."""
        self._set_targeted("targeted(least-likely)", self.get_least_likely_label, quiet)
        assert kth_min > 0
        self._kth_min = kth_min

    @also_of_parts
    def set_mode_targeted_by_label(self, quiet: bool = False) -> None:
        """Towards the labels of the call, which are then targets."""
        self._set_targeted("targeted(label)", _themselves, quiet)

    def _set_targeted(self, mode: str, target: Any, quiet: bool) -> None:
        if "targeted" not in self.supported_mode:
            expected = "an attack that aims (PGD and its relatives, FAB, Square)"
            raise ArgumentError(describe("mode", expected, f"{mode} of {self.attack}"))
        self.attack_mode, self.targeted, self._target_map_function = mode, True, target
        logger.log(logging.DEBUG if quiet else logging.INFO, "attack mode is '%s'", mode)

    def get_target_label(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """The classes (B,) to aim at for images in [0, 1], as the mode says."""
        if self._target_map_function is None:
            raise ArgumentError(describe("attack_mode", "one with targets", self.attack_mode))
        return self._target_map_function(inputs, labels).to(inputs.device)

    def get_least_likely_label(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """The wrong class (B,) of `kth_min`-th lowest logit; without labels the likeliest class is
        the right one."""
        clean = self.get_output_with_eval_nograd(inputs)
        labels = clean.argmax(1) if labels is None else labels
        others = most_likely_others(clean, labels, clean.shape[1] - 1)
        return others[:, -self._kth_min].contiguous()

    def get_random_target_label(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """A wrong class (B,) drawn for each image."""
        clean = self.get_output_with_eval_nograd(inputs)
        labels = clean.argmax(1) if labels is None else labels
        ids = torch.arange(len(inputs), device=inputs.device)
        return choose("random", clean, labels, self.generator, ids)

    def get_output_with_eval_nograd(self, inputs: Tensor) -> Tensor:
        """Logits (B, C) of the model in eval mode, for images as `get_logits` takes them."""
        return clean_logits(View(bound(self.model).model, self.get_logits), inputs)

    @staticmethod
    def to_type(inputs: Tensor, type: str) -> Tensor:
        """fp32 images as uint8, rounded, or uint8 ones as fp32 in [0, 1]; others as they are."""
        check_choice("type", type, ("float", "int"))
        if type == "int" and inputs.dtype == torch.float32:
            return as_pixels(inputs, inputs)
        return inputs.float() / 255 if type == "float" and inputs.dtype == torch.uint8 else inputs

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
            save_type: "float", or "int" for uint8, a quarter of the size, rounded towards the
                inputs (`as_pixels`). Accuracy, distance and predictions are of what is written.

        Returns:
            Robust accuracy in percent, mean l2 distance of the images that fool (in [0, 1] units;
            NaN where none does), and the last batch's seconds; None without `return_verbose`.
        """
        check_choice("save_type", save_type, ("float", "int"))
        say = logger.info if verbose else logger.debug
        kept, numbers = files.collect(self, data_loader, save_type, say)
        if save_path is not None:
            wanted = files.names(save_predictions, save_clean_inputs)
            files.write(save_path, {name: kept[name] for name in wanted}, save_type)
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


def _themselves(_images: Tensor, labels: Tensor | None) -> Tensor:
    assert labels is not None, "the targets are the labels"
    return labels

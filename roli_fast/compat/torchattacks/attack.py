"""The base of all attacks with torchattacks' interface: modes, targets, normalisation, device."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader

from roli_fast.attacks import AttackResult
from roli_fast.attacks.objective import choose, most_likely_others
from roli_fast.compat.peers import ReadAttributes, clean_logits
from roli_fast.compat.torchattacks import files
from roli_fast.compat.view import Modes, View
from roli_fast.engine import Cost, InputGradient, SearchModel, bound
from roli_fast.engine.input_gradient import Model, check_tensor
from roli_fast.errors import ArgumentError, ArgumentTypeError, describe
from roli_fast.threat import as_pixels, check_images

logger = logging.getLogger("roli_fast.compat")

TargetMap = Callable[[Tensor, Tensor], Tensor]


def also_of_parts(setter: Callable[..., None]) -> Callable[..., None]:
    """A setter that sets it for the attacks that this one holds in its attributes too."""

    @functools.wraps(setter)
    def both(self: "Attack", *args: Any, **named: Any) -> None:
        setter(self, *args, **named)
        for part in self._parts:
            getattr(part, setter.__name__)(*args, **named)

    return both


class Attack(ReadAttributes):
    """Base of the attacks here, and of your own: overridden `forward` and `get_logits` are called.

    Attributes may be changed between calls (`attack.eps = 4 / 255`); those that are not read are
    refused.

    Args:
        name: the attack's.
        model: images (B, ...) -> logits (B, C).
        attributes: what a search reads.
    """

    unread = frozenset(
        (
            *("_attacks", "_save_print", "_change_model_mode", "_recover_model_mode"),
            *("_model_training", "_batchnorm_training", "_dropout_training"),
            *("_normalization_applied", "_set_normalization_applied", "_set_mode_targeted"),
            "_set_rmodel_normalization_used",
        )
    )

    generator: Generator | None = None
    """Source of the random starts; None takes torch's global generator, a number a search."""

    def __init__(self, name: str, model: Model, **attributes: Any) -> None:
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
        self._target_map_function: TargetMap | None = None
        self._kth_min = 1
        self._in_pixels = False  # whether images are in [0, 1] now, though calls' are normalised
        self._modes = Modes()
        vars(self).update(attributes, _built=True)
        mean, std = (getattr(inner, name, None) for name in ("mean", "std"))
        if type(inner).__name__ == "RobModel" and mean is not None and std is not None:  # MAIR's
            mean, std = (torch.as_tensor(v).flatten().tolist() for v in (mean, std))
            if all(m != 0 for m in mean) or any(s != 1 for s in std):
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
        if args or kwargs:
            got = f"{len(args) + len(kwargs)} more"
            raise ArgumentTypeError(describe("forward", "inputs and labels", got))
        return self.search(inputs, labels).x_adv

    def get_logits(
        self, inputs: Tensor, labels: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Logits (B, C) of images in [0, 1] during a call, else of images in the form of a call's.

        Every pass of an attack goes through it where it is overridden.
        """
        model = self.model.model if isinstance(self.model, SearchModel) else self.model
        return model(self.normalize(inputs) if self._in_pixels else inputs)

    def search(
        self, images: Tensor, labels: Tensor | None, sample_ids: Tensor | None = None
    ) -> AttackResult:
        """The search itself, on images in [0, 1] on the right device."""
        raise NotImplementedError

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
        return self.in_form(self.run(inputs, labels, None, *args, **kwargs).x_adv)

    def run(
        self,
        inputs: Tensor,
        labels: Tensor | None,
        sample_ids: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> AttackResult:
        """As a call, with cost and flags; its images are in [0, 1]."""
        check_tensor("inputs", inputs)
        images = inputs.detach().to(self.device)
        normalised = self.normalization_used is not None and not self._in_pixels
        if normalised:
            images = check_images(self.inverse_normalize(images), (0.0, 1.0))
        if labels is not None:
            check_tensor("labels", labels)
            labels = labels.detach().to(self.device)
        if self.targeted and "targeted" not in self.supported_mode:
            self._set_targeted(self.attack_mode, None, quiet=True)  # says that it cannot
        with self._pixels(normalised):
            if not self.overrides("forward", Attack) and not (args or kwargs):
                return self.search(images, labels, sample_ids)
            view = View(bound(self.model).model, self._logits_of_pixels, self._modes)
            with InputGradient(view), view.with_copies():
                found = self.forward(images, labels, *args, **kwargs)
            return AttackResult(found.detach(), Cost(0, 0, 0, 0))

    @contextlib.contextmanager
    def _pixels(self, normalised: bool) -> Iterator[None]:
        """Within, this attack and its parts are given images in [0, 1]."""
        told = [one for one in (self, *self._parts) if normalised and not one._in_pixels]
        with contextlib.ExitStack() as inner:
            for one in told:
                one._in_pixels = True
                inner.callback(setattr, one, "_in_pixels", False)
                if one is not self:
                    inner.enter_context(one._pixels(True))
            yield

    def in_form(self, images: Tensor) -> Tensor:
        """Images in [0, 1] in the form of a call's inputs."""
        normalised = self.normalization_used is not None and not self._in_pixels
        return self.normalize(images) if normalised else images

    def view(self, *, eval_mode: bool = False) -> Model:
        """The model as a search sees it: for images in [0, 1], in the modes asked for."""
        modes = Modes() if eval_mode else self._modes
        overridden = self.overrides("get_logits", Attack) or self.overrides("normalize", Attack)
        if self.normalization_used is None and modes == Modes() and not overridden:
            return self.model
        view = View(bound(self.model).model, self._logits_of_pixels, modes)
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
    def set_normalization_used(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Say that inputs are normalised, (x - mean) / std per channel.

        The attack works on x in [0, 1], whose units eps has, and returns normalised images.
        """
        self.normalization_used = {
            name: torch.tensor([float(v) for v in values]).reshape(1, -1, 1, 1)
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
        if used is None:
            expected = "mean and std of this attack, by set_normalization_used"
            raise ArgumentError(describe("normalization_used", expected, None))
        channels = used["mean"].shape[1]
        if inputs.ndim != 4 or inputs.shape[1] != channels:
            expected = f"images (B, {channels}, H, W)"
            raise ArgumentError(describe("inputs", expected, f"shape {tuple(inputs.shape)}"))
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
        if not isinstance(kth_min, int) or kth_min < 1:
            raise ArgumentError(describe("kth_min", "an integer >= 1", repr(kth_min)))
        self._set_targeted("targeted(least-likely)", self.get_least_likely_label, quiet)
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
        """The classes (B,) to aim at for images in [0, 1], as the mode says.

        Raises:
            ArgumentError: the mode has no targets, or fewer wrong classes than it asks for.
        """
        if self._target_map_function is None:
            raise ArgumentError(describe("attack_mode", "one with targets", self.attack_mode))
        return self._target_map_function(inputs, labels).to(inputs.device)  # type: ignore[arg-type]

    def get_least_likely_label(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """The wrong class (B,) of `kth_min`-th lowest logit; without labels the likeliest class is
        the right one."""
        clean = self.get_output_with_eval_nograd(inputs)
        labels = clean.argmax(1) if labels is None else labels
        others = most_likely_others(clean, labels, clean.shape[1] - 1)
        if others.shape[1] < self._kth_min:
            expected = f"at most {others.shape[1]}, the number of wrong classes"
            raise ArgumentError(describe("kth_min", expected, self._kth_min))
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
        files.check_type(type)
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
        files.check_type(save_type, "save_type")
        say = logger.info if verbose else logger.debug
        kept, numbers = files.collect(self, data_loader, save_type, say)
        if save_path is not None:
            files.write(
                save_path, kept, files.names(save_predictions, save_clean_inputs), save_type
            )
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


def _themselves(_images: Tensor, labels: Tensor) -> Tensor:
    return labels

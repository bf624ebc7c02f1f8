"""Anybody's network as a classifier: given as a module, or made by a function that is named."""

import copy
import inspect
import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from roli_fast.errors import ArgumentError, ConfigError, describe
from roli_fast.models.classifier import Classifier, Model, find_head
from roli_fast.models.weights import fingerprint
from roli_fast.registry import import_object
from roli_fast.seeds import derive_seed

logger = logging.getLogger("roli_fast.models")

GIVEN = "given:"
"""Begins the name of a network that was handed in as a module, in this process."""

_given: dict[str, nn.Module] = {}


def wrap(
    module: nn.Module,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    head: str | None = None,
    resize: int | None = None,
) -> Classifier:
    """A classifier of images in [0, 1] around any network; the network itself is not copied.

    >>> model = wrap(torchvision.models.resnet18(weights="DEFAULT"), mean=MEAN, std=STD)
    >>> peft.apply(model, peft.Bias())

    Args:
        module: images (B, C, H, W) -> logits (B, classes), or an object with `.logits`, or one
            logit of two classes (B, 1).
        mean: channel means that its images are normalised with; None takes timm's where the network
            carries them, else it takes images as they are, in [0, 1].
        std: channel standard deviations; None likewise.
        head: path of the linear layer that gives the logits, "fc" say; None finds it.
        resize: size to which images are resized before the network.

    Returns:
        A classifier; `model.backbone` is `module`.

    Raises:
        ArgumentError: `module` is no module, `head` is no linear layer of it, or none or several
            might be its head: they are listed.
    """
    if not isinstance(module, nn.Module):
        fix = "Of a class make an object; of a function a module whose forward calls it."
        raise ArgumentError(describe("module", "a torch.nn.Module", type(module).__name__, fix))
    if isinstance(module, Classifier):
        raise ArgumentError(describe("module", "a plain network", "one that is wrapped already"))
    if (mean is None) != (std is None):
        raise ArgumentError(describe("mean and std", "both or none", f"mean {mean}, std {std}"))
    own = getattr(module, "pretrained_cfg", None) or {}
    mean, std = mean or own.get("mean"), std or own.get("std")
    if mean is None or std is None:
        convolutions = (m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d))
        channels = next(convolutions, 3)
        mean, std = (0.0,) * channels, (1.0,) * channels
    config = Model(type(module).__name__, mean=tuple(mean), std=tuple(std), resize=resize)
    model = Classifier(module, replace(config, head=head), mean, std)
    find_head(model)
    return model


def hand_in(module: nn.Module) -> Model:
    """The configuration that stands for a network of this process, which is copied as it is now.

    Args:
        module: any network, or a classifier (`wrap`), whose normalisation goes along.

    Returns:
        A `Model` whose name has the class and a hash of the weights, so that a run that is resumed
        with other weights is noticed.
    """
    model = module if isinstance(module, Classifier) else wrap(module)
    if "tuning" in model.card:
        fix = "Merge it first (peft.merge), or hand in the network that it was made from."
        raise ArgumentError(describe("model", "a network without tuning", model.card["name"], fix))
    state = model.backbone.state_dict()
    name = f"{GIVEN}{type(model.backbone).__name__}-{fingerprint(state)[:12]}"
    _given[name] = copy.deepcopy(model.backbone)
    config = model.config
    mean, std = (tuple(model.card[part]) for part in ("mean", "std"))
    return Model(name, mean=mean, std=std, resize=config.resize, head=config.head)


def foreign_network(config: Model, num_classes: int, *, seed: int, with_head: bool) -> nn.Module:
    """A new copy of the network that "given:..." or "module:factory" names, with a head for
    `num_classes`: a fresh one, or with `with_head` its own.

    Raises:
        ArgumentError: it cannot be made, has no head, or its own is of another number of classes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "model"))
        if config.name.startswith(GIVEN):
            network = copy.deepcopy(_handed_in(config.name))
        else:
            network = _called(config)
        # found by the classifier, which knows the path that the user may have named
        path, head = find_head(Classifier(network, config, (0.0,), (1.0,)))
        classes = max(2, head.out_features)  # one logit is that of the second of two
        if not with_head:
            new = nn.Linear(head.in_features, num_classes, bias=head.bias is not None)
            network.set_submodule(path.removeprefix("backbone."), new.to(head.weight), strict=True)
        elif classes != num_classes:
            got = f"a head of {classes} for {num_classes} classes"
            fix = "Take a method with a fresh head (roli, ranli)."
            raise ArgumentError(describe("model", "a head for these classes", got, fix))
    return network


def _handed_in(name: str) -> nn.Module:
    if name in _given:
        return _given[name]
    fix = "Hand in the same network with the same weights again (roli_fast.fit, models.load with "
    fix += "network=), or use model.name=module:factory, which every process can call."
    raise ArgumentError(describe("model.name", "a network of this process", repr(name), fix))


def _called(config: Model) -> nn.Module:
    """What the function of `config.name` returns for the options."""
    factory = import_object("model.name", config.name)
    if isinstance(factory, nn.Module):
        return copy.deepcopy(factory)
    try:
        network = factory(**config.options)
    except Exception as error:  # whatever somebody's function raises
        got = f"'{config.name}' that raised {type(error).__name__}: {error}"
        signature = inspect.signature(factory) if callable(factory) else ""
        fix = f"It is called with model.options; it takes {signature}." if signature else ""
        raise ConfigError(describe("model.name", "a factory of a network", got, fix)) from error
    if not isinstance(network, nn.Module):
        got = f"{type(network).__name__} from '{config.name}'"
        raise ConfigError(describe("model.name", "a factory that returns an nn.Module", got))
    return network

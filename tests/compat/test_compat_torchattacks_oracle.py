"""Beside torchattacks 3.5.1 itself: signatures, images, targets, files.

Not installed with the package's tests: it pins an old `requests` and brings a second `robustbench`.
To run these: `pip install --no-deps torchattacks requests`.
"""

import contextlib
import inspect
import io
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import Mixed, images, untouched
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import roli_fast.compat.torchattacks as ours
from roli_fast.norms import NORMS

theirs = pytest.importorskip(
    "torchattacks", reason="the oracle torchattacks is not installed: see this file's docstring"
)

X = images(16, 3, 6, 6)
MEAN, STD = [0.44, 0.45, 0.46], [0.2, 0.2, 0.21]

DETERMINISTIC: dict[str, dict[str, Any]] = {
    "FGSM": {},
    "BIM": {},
    "PGD": dict(random_start=False),
    "PGDL2": dict(random_start=False, eps=0.5),
    "MIFGSM": {},
    "NIFGSM": {},
    "SINIFGSM": dict(m=3),
    "DIFGSM": dict(diversity_prob=0.0),
    "TIFGSM": dict(diversity_prob=0.0, len_kernel=5, decay=0.5),
    "UPGD": dict(decay=0.9),
    "EOTPGD": dict(random_start=False),
    "UPGD-own": dict(eot_iter=2),
}
"""Attacks that draw nothing, and their options; "own" is a loss of a user's. Where theirs has
rounded once more, after a step or a projection, images differ by what `TOLERANCE` allows; FGSM's
not at all."""

MODES = ("default", "function", "least", "third", "label", "normalised")

TOLERANCE = {"FGSM": 0.0, "PGDL2": 5e-7, "TPGD": 1e-9}  # in fp64 eps still is its fp32 value
OTHERWISE = 2.0**-24
"""Half the spacing of fp32 numbers below 1."""


class Model(Mixed):
    """In eval mode, so that the oracle leaves it so; labels are what it sees, but for some."""

    def __init__(self) -> None:
        super().__init__()
        self.eval()

    def labels(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self(x).argmax(1)
        y[::5] = (y[::5] + 1) % 4
        return y


@contextlib.contextmanager
def peer(seed: int = 0) -> Iterator[None]:
    """It prints, draws from the global generator and reseeds it."""
    with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
        torch.manual_seed(seed)
        yield


def both(name: str, model: nn.Module, **options: Any) -> tuple[Any, Any]:
    name, _, own = name.partition("-")
    options |= {"loss": squared(model)} if own else {}
    return getattr(ours, name)(model, **options), getattr(theirs, name)(model, **options)


def squared(model: nn.Module) -> Any:
    """A loss of a user's own: of images, labels and targets."""

    def loss(images: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
        logits = model(images)
        wanted = nn.functional.one_hot(labels if targets is None else targets, 4)
        return (logits - wanted).square().sum(1).mean() * (1 if targets is None else -1)

    return loss


@pytest.fixture(params=ours.__all__)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_constructors_have_the_same_signature(name: str) -> None:
    def arguments(kind: Any) -> list[tuple[str, Any, Any]]:
        parameters = inspect.signature(kind).parameters.values()
        return [(p.name, p.default, p.kind) for p in parameters]

    assert arguments(getattr(ours, name)) == arguments(getattr(theirs, name))


PUBLIC = [n for n in vars(theirs.attacks.pgd.Attack) if not n.startswith("_")]


def test_methods_have_the_same_signature() -> None:
    for method in PUBLIC:
        other = getattr(theirs.attacks.pgd.Attack, method)
        if "func" in inspect.getclosurevars(other).nonlocals:  # their decorator hides it
            other = inspect.getclosurevars(other).nonlocals["func"]
        names = [
            [(p.name, p.default) for p in inspect.signature(one).parameters.values()]
            for one in (getattr(ours.Attack, method), other)
        ]
        assert names[0] == names[1], method


def test_names_and_modules_are_theirs() -> None:
    assert ours.__version__ == theirs.__version__
    assert set(ours.__wrapper__) <= set(theirs.__wrapper__)
    for name in ours.__all__:
        kind = getattr(theirs, name)
        own = import_module(kind.__module__.replace("torchattacks", ours.__name__, 1))
        assert getattr(own, name) is getattr(ours, name) and own.Attack is ours.Attack
    names = [[*inspect.signature(m.MultiAttack.save).parameters] for m in (ours, theirs)]
    assert names[0] == names[1]


def test_every_attack_of_theirs_is_there_or_named() -> None:
    for missing in set(theirs.__all__) - set(ours.__all__):
        with pytest.raises(AttributeError, match=f"no '{missing}'. There are: "):
            getattr(ours, missing)


@pytest.mark.parametrize(
    "name", [name for name in DETERMINISTIC if name not in ("UPGD-own", "TIFGSM")]
)
def test_repr_and_attributes(name: str) -> None:
    def shown(attack: Any) -> list[str]:
        return sorted(repr(attack).removesuffix(")").replace("(", ", ", 1).split(", "))

    own, other = both(name, Model(), **DETERMINISTIC[name])
    assert shown(own) == shown(other)
    for one in (own, other):
        one.set_mode_targeted_by_label(quiet=True)
        one.set_normalization_used(MEAN, STD)
    assert shown(own) == shown(other)
    assert own.attack == other.attack and own.model is other.model
    assert own.supported_mode == other.supported_mode


@pytest.mark.parametrize(
    ("name", "mode"),
    [  # theirs hands a loss of a user's no other targets, and normalises for it
        (name, mode)
        for name in DETERMINISTIC
        for mode in (MODES[:2] if name == "UPGD-own" else MODES)
    ],
)
def test_the_same_images(name: str, mode: str) -> None:
    model, x = Model(), X
    y = model.labels(X)
    own, other = both(name, model, **DETERMINISTIC[name])
    for one in (own, other):
        if mode == "function":
            one.set_mode_targeted_by_function(lambda _, labels: (labels + 1) % 4, quiet=True)
        if mode in ("least", "third"):
            one.set_mode_targeted_least_likely(3 if mode == "third" else 1, quiet=True)
        if mode == "label":
            one.set_mode_targeted_by_label(quiet=True)
        if mode == "normalised":
            one.set_normalization_used(mean=MEAN, std=STD)
            x = own.normalize(X)
    with peer():
        truth = other(x, y)
    with untouched(model):
        found = own(x, y)
    allowed = 5e-6 if mode == "normalised" else TOLERANCE.get(name, OTHERWISE)
    assert (found - truth).abs().max() <= allowed  # 5e-6: 1 / std times that of the pixels
    assert (truth - x).abs().max() > 0.01


def test_their_helpers() -> None:
    model = Model()
    y = model.labels(X)
    own, other = both("PGD", model)
    for one in (own, other):
        one.set_mode_targeted_least_likely(2, quiet=True)
    with peer():
        truth = other.get_output_with_eval_nograd(X)
        for labels in (y, None):
            least = own.get_least_likely_label(X, labels)
            assert torch.equal(least, other.get_least_likely_label(X, labels))
            drawn = own.get_random_target_label(X, labels)
            right = truth.argmax(1) if labels is None else labels
            assert (drawn != right).all() and drawn.max() < 4 and len(set(drawn.tolist())) > 2
        assert torch.equal(own.get_output_with_eval_nograd(X), truth)
    levels = torch.tensor([0.0, 0.5, 1.0])
    assert own.to_type(levels, "int").tolist() == [0, 128, 255]  # theirs rounds down: 127
    for given in (own.to_type(levels, "int"), levels):
        assert torch.equal(own.to_type(given, "float"), other.to_type(given, "float"))


@pytest.mark.parametrize("name", ["PGD", "FFGSM", "EOTPGD", "PGDL2", "TPGD"])
def test_from_the_same_start_the_same_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle's start is read off its first gradient's forward and handed to ours.

    TPGD in fp64: so near the image the KL's gradient in fp32 is rounding noise in many entries.
    """
    x, model = (X.double(), Model().double()) if name == "TPGD" else (X, Model())
    y = model.labels(x)
    own, other = both(name, model)
    seen: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    with peer():
        truth = other(x, y)
    handle.remove()
    start = seen[1] if name == "TPGD" else seen[0]
    assert (start - x).abs().max() > 1e-4

    def fixed(x: Tensor, **_: Any) -> Tensor:
        return start.clone()

    if name == "TPGD":
        monkeypatch.setattr("roli_fast.ops.l2_random_start", fixed)
    else:
        norm = NORMS["l2" if name == "PGDL2" else "linf"]
        monkeypatch.setattr(type(norm), "random_start", staticmethod(fixed))
    assert (own(x, y) - truth).abs().max() <= TOLERANCE.get(name, OTHERWISE)


def test_tpgd_starts_as_far_from_the_image_as_theirs() -> None:
    grey = torch.full((8, 3, 32, 32), 0.5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4))
    spread = []
    for module in (ours, theirs):
        seen: list[Tensor] = []
        handle = model.register_forward_pre_hook(lambda _, a, to=seen: to.append(a[0].clone()))
        with peer():
            module.TPGD(model, steps=1)(grey)
        handle.remove()
        spread.append((seen[1] - grey).std().item())
    assert spread == pytest.approx([0.001, 0.001], rel=0.02)


def batches() -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Model().labels(X)), batch_size=6)


def test_multi_attack(tmp_path: Path) -> None:
    """The same images, file and rates of its parts."""
    model, found, numbers = Model(), [], []
    for module in (ours, theirs):
        parts = [module.FGSM(model, eps=0.02), module.PGDL2(model, eps=0.3, random_start=False)]
        whole, path = module.MultiAttack(parts), tmp_path / f"{module.__name__}.pt"
        with peer():
            found.append(whole(X, model.labels(X)))
            numbers.append(whole.save(batches(), path, False, True, True, True))
            assert whole.save(batches(), verbose=False) is None
        inputs = next(iter(ours.PGD.load(path, 16, load_clean_inputs=True, load_predictions=True)))
        assert torch.equal(inputs[3], X)
    assert (found[0] - found[1]).abs().max() <= TOLERANCE["PGDL2"]
    (accuracy, rates, far, _), truth = numbers
    assert accuracy == pytest.approx(truth[0]) and far == pytest.approx(truth[2], rel=1e-5)
    assert rates == pytest.approx(truth[1]) and 0 < rates[0] < rates[1] == 100 - accuracy


@pytest.mark.parametrize("options", [{}, dict(save_predictions=True, save_clean_inputs=True)])
def test_files_are_read_by_either(options: dict[str, bool], tmp_path: Path) -> None:
    own, other = both("PGD", Model(), random_start=False)
    flags = {"load_" + key.removeprefix("save_"): value for key, value in options.items()}
    own.save(batches(), tmp_path / "own.pt", verbose=False, **options)
    with peer():
        numbers = other.save(batches(), tmp_path / "other.pt", return_verbose=True, **options)
        crossed = list(theirs.PGD.load(tmp_path / "own.pt", batch_size=16, **flags))[0]
    mine = own.save(batches(), return_verbose=True, verbose=False)
    assert mine[:2] == pytest.approx(numbers[:2], rel=1e-6)
    straight = list(ours.PGD.load(tmp_path / "other.pt", batch_size=16, **flags))[0]
    assert len(crossed) == len(straight) == 2 + len(options)
    for one, two in zip(crossed, straight, strict=True):
        assert one.dtype == two.dtype and torch.allclose(one, two, rtol=0, atol=1e-7)

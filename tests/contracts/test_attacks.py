"""What every registered attack returns: images in ball and box that do what it says of them, at the
cost that it says, whatever the dtype, shape, layout, batch and engine.

"AA" is github.com/fra31/auto-attack (a392200), "torchattacks" 3.5.1: what was seen in them when run
stands at the test that looks for it here.
"""

import dataclasses
from typing import Any

import pytest
import torch
from tiny_attacks import (
    EPS,
    balls,
    generator,
    has,
    in_box,
    in_norm,
    inside_one,
    predicted,
    short,
    short_under,
)
from tiny_models import Counting, Mixed, images, untouched
from torch import Tensor, nn

from roli_fast.attacks import ATTACKS, Attack, AttackResult
from roli_fast.engine import Cost, Engine
from roli_fast.errors import ArgumentError, ArgumentTypeError
from roli_fast.norms import NORMS
from roli_fast.threat import ThreatModel

X = images(6, 3, 6, 6)
Y = predicted(Mixed(), X)
LOW = (torch.bfloat16, torch.float16)


@pytest.fixture(params=NORMS.names())
def norm(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=ATTACKS.names())
def kind(request: pytest.FixtureRequest) -> type[Attack]:
    return ATTACKS[request.param]


@pytest.fixture
def attack(kind: type[Attack], norm: str) -> Attack:
    return short(kind, norm)


def linear(size: int, classes: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(size, classes))


def check(result: AttackResult, x: Tensor, attack: Attack) -> None:
    """It is in ball and box, and has moved where the attack does not say that it failed."""
    x_adv = result.x_adv
    assert x_adv.shape == x.shape and x_adv.dtype == x.dtype and x_adv is not x
    assert not x_adv.requires_grad and x_adv.grad_fn is None
    assert inside_one(x_adv, x, attack).all() and in_box(x_adv)
    moved = (x_adv != x).flatten(1).any(1)
    assert (moved if result.fooled is None else moved | ~result.fooled).all()


def test_it_is_a_frozen_dataclass_with_usable_defaults(kind: type[Attack]) -> None:
    attack: Any = kind()
    assert dataclasses.is_dataclass(kind) and attack == kind() and hash(attack) == hash(kind())
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.eps = 0.5
    labels = [ATTACKS[name]().label for name in ATTACKS]
    assert attack.label == attack.label.lower() and labels.count(attack.label) == 1


@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
@pytest.mark.parametrize("share", [1 / 8, 10])
def test_ball_and_box(kind: type[Attack], norm: str, dtype: torch.dtype, share: float) -> None:
    """bf16 model and images: AA and torchattacks' APGD raise; torchattacks' PGD leaves the ball by
    1.8e-3."""
    model, x, attack = Mixed().to(dtype), X.to(dtype), short(kind, norm, EPS[norm] * share)
    kept = x.clone()
    check(attack.run(model, x, predicted(model, x), generator()), x, attack)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
@pytest.mark.parametrize("share", [1 / 8, 1])
def test_where_the_attacker_may_choose_a_norm_a_result_is_in_one_of_the_balls(
    kind: type[Attack], dtype: torch.dtype, share: float
) -> None:
    """An attack in one norm follows the threat's first, so it is in that."""
    names = ("l2", "l1", "linf")
    radii = [EPS[name] * share for name in names]
    threat = ThreatModel("l2", radii[0], other_norms=names[1:], other_eps=tuple(radii[1:]))
    attack = short_under(kind, threat)
    expected = list(zip(names, radii, strict=True))
    assert balls(attack) == (expected if has(kind, "norms") else expected[:1])
    model, x = Mixed().to(dtype), X.to(dtype).contiguous(memory_format=torch.channels_last)
    check(attack.run(model, x, predicted(model, x), generator()), x, attack)


def test_it_raises_the_loss_tells_its_cost_and_gives_the_model_back(attack: Attack) -> None:
    model = Counting(Mixed())
    with untouched(model):
        result = attack.run(model, X, Y, generator())
    assert result.cost == Cost(model.forwards, model.backwards) and model.forwards > 0
    eval_mode = Mixed().eval()
    with torch.no_grad():
        before, after = (nn.functional.cross_entropy(eval_mode(x), Y) for x in (X, result.x_adv))
    assert after > before
    if result.fooled is not None:
        assert torch.equal(result.fooled, predicted(eval_mode, result.x_adv) != Y)


@pytest.mark.parametrize(
    ("shape", "classes"),
    [
        *(((3, 3, *size), 4) for size in ((24, 40), (9, 6), (1, 9))),
        *(((40, 20), classes) for classes in (2, 3, 5)),
        ((1, 3, 6, 6), 4),
        ((0, 3, 6, 6), 4),
    ],
    ids=str,
)
def test_any_shape_and_number_of_classes(
    attack: Attack, shape: tuple[int, ...], classes: int
) -> None:
    """(N, 20): torchattacks' PGDL2, APGD and Square, and AA's Square raise, AA also with fewer than
    ten classes. Images that are not square: Square in l2 and l1 raises in both."""
    x = images(*shape)
    model = linear(x.shape[1:].numel(), classes)
    y = predicted(model, x)
    result = attack.run(model, x, y, generator())
    check(result, x, attack)
    assert len(x) < 40 or bool((predicted(model, result.x_adv) != y).any())


def test_in_other_bounds_it_finds_the_same(kind: type[Attack], norm: str) -> None:
    """All lengths times 256: a power of two changes no rounding."""

    class Scaled(Mixed):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x / 256)

    x, threat = X.double(), ThreatModel(norm, EPS[norm] * 256, (0.0, 256.0))
    large = short_under(kind, threat, bounds=None).run(Scaled().double(), x * 256, Y, generator())
    plain = short(kind, norm).run(Mixed().double(), x, Y, generator())
    torch.testing.assert_close(large.x_adv / 256, plain.x_adv, rtol=0, atol=1e-6)
    assert large.cost == plain.cost


@pytest.mark.parametrize("dtype", [None, *LOW], ids=str)
def test_results_do_not_depend_on_batch_and_engine(attack: Attack, dtype: Any) -> None:
    """AA's APGD, same seed, batches of 8 or 4: images differ by up to 2 eps.

    In fp64, where a model's logits differ in the fifteenth digit with the batch's composition; in
    low precision ball and box hold.
    """
    if dtype is not None:
        with untouched(model := Mixed()):
            check(attack.run(model, X, Y, generator(), engine=Engine(dtype=dtype)), X, attack)
        return
    model, x, ids = Mixed().double(), X.double(), torch.arange(6)
    whole = attack.run(model, x, Y, generator(), sample_ids=ids)
    assert torch.equal(attack(model, x, Y, generator(), engine=Engine()), whole.x_adv)
    split = attack.run(model, x, Y, generator(), engine=Engine(batch_size=4))
    torch.testing.assert_close(split.x_adv, whole.x_adv, rtol=0, atol=1e-9)
    assert split.cost.forwards > whole.cost.forwards
    bound = attack.run(Engine(batch_size=4).bind(model), x, Y, generator())
    assert torch.equal(bound.x_adv, split.x_adv) and bound.cost == split.cost
    for rows in (*ids.split(4), ids[5:], torch.randperm(6, generator=generator(1))):
        part = attack(model, x[rows], Y[rows], generator(), sample_ids=ids[rows])
        torch.testing.assert_close(part, whole.x_adv[rows], rtol=0, atol=1e-9)


def test_one_radius_a_sample_is_as_calls_with_one_radius(kind: type[Attack], norm: str) -> None:
    """torchattacks' PGD raises on it with a random start; foolbox runs an attack for each."""
    attack, ids, model, x = short(kind, norm), torch.arange(6), Mixed().double(), X.double()
    if "eps" not in kind.options:
        with pytest.raises(TypeError, match="`eps`: expected None, for .* takes no eps"):
            attack(model, x, Y, generator(), eps=0.1)  # never another radius in silence
        return
    radii = EPS[norm] * torch.tensor([0.0, 0.25, 0.5, 1.0, 2.0, 4.0]).double()
    together = attack(model, x, Y, generator(), sample_ids=ids, eps=radii)
    assert torch.equal(together[0], x[0])
    for i, eps in enumerate(radii[1:].tolist(), start=1):
        one, rows = short(kind, norm, eps), slice(i, i + 1)
        alone = one(model, x[rows], Y[rows], generator(), sample_ids=ids[rows])
        torch.testing.assert_close(together[rows], alone, rtol=0, atol=1e-9)
    with pytest.raises(ArgumentError, match="`eps`: expected"):
        attack(model, x, Y, generator(), eps=radii[:2])


class Autocast(nn.Module):
    """A model that computes in bf16 by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Mixed()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(x)


def test_a_model_under_autocast_with_fp32_images(attack: Attack) -> None:
    """AA's Square (dtype of an index_put) and torchattacks' APGD raise."""
    model = Autocast()
    result = attack.run(model, X, predicted(model, X), generator())
    check(result, X, attack)
    with torch.autocast("cpu", torch.bfloat16):
        inside = attack(Mixed(), X, predicted(model, X), generator())
    assert torch.equal(inside, result.x_adv)


class Layout(torch.autograd.Function):
    """The identity whose gradient is channels_last, as cuDNN's and oneDNN's convolutions give."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].contiguous(memory_format=torch.channels_last)


class ChannelsLast(Mixed):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(Layout.apply(x) if x.requires_grad else x)  # pyright: ignore


def takes_dlr(kind: type[Attack]) -> bool:
    try:
        return has(kind, "loss") and bool(kind(loss="dlr"))  # pyright: ignore
    except ArgumentError:
        return False


DLR = [(name, {"loss": "dlr"}) for name in ATTACKS if takes_dlr(ATTACKS[name])]


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in ATTACKS), *DLR], ids=str)
def test_images_and_gradients_in_channels_last(
    name: str, options: dict[str, Any], norm: str
) -> None:
    """AA's DLR attacks crash on such a gradient (`view` in the zero-gradient check)."""
    attack, rows = short(ATTACKS[name], norm, **options), X.contiguous()
    plain = attack(Mixed(), rows, Y, generator())
    last = X.contiguous(memory_format=torch.channels_last)
    for model, x in ((ChannelsLast(), rows), (Mixed(), last)):
        assert torch.allclose(attack(model, x, Y, generator()), plain, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ((X - 0.45) / 0.225, r"`x`: expected images within bounds.*models.Normalize"),
        (X.clone().index_fill_(0, torch.tensor(2), float("nan")), r"`x`: expected images within"),
        ((X * 255).byte(), r"`x`: expected a floating-point tensor.*255"),
        (X.numpy(), r"`x`: expected a floating-point tensor.*ndarray"),
    ],
    ids=["normalised", "nan", "uint8", "numpy"],
)
def test_images_that_cannot_be_attacked(kind: type[Attack], x: Any, message: str) -> None:
    """Outside [0, 1] torchattacks and AA change pixels by up to 4.02 at eps 0.03, silently."""
    model = Mixed()
    with untouched(model), pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        short(kind, "linf")(model, x, Y, generator())


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (Y[:2], r"expected shape \(6,\), got \(2,\)"),
        (Y + 9, r"labels in \[0, 4\).*num_classes"),
        (Y.tolist(), "expected a torch.Tensor, got list"),
        (torch.ones(6, 4), "Several labels a sample and soft labels are not supported"),
        (torch.eye(4, dtype=torch.int64)[Y % 4], r"of one-hot ones take y\.argmax\(1\)"),
        (Y.float(), r"torch\.float32 of shape \(6,\)\. Use y\.long\(\)"),
    ],
    ids=["few", "beyond", "list", "several", "one-hot", "float"],
)
def test_labels_that_cannot_be_used(kind: type[Attack], y: Any, words: str) -> None:
    model = Mixed()
    message = f"`y`: .*{words}"
    with untouched(model), pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        short(kind, "linf")(model, X, y, generator())


@pytest.mark.parametrize("hidden", [False, True], ids=["in place", "by data"])
def test_a_model_that_changes_its_input_is_named(kind: type[Attack], hidden: bool) -> None:
    """And the images are as they were."""

    class InPlace(Mixed):
        def forward(self, x: Tensor) -> Tensor:
            (x.data if hidden else x).sub_(0.5).div_(0.25)
            return super().forward(x)

    model = InPlace()
    with torch.inference_mode(hidden):
        x, y = X.clone(), Y.clone()
        with pytest.raises(ArgumentError, match=r"`model`: .* leaves its input .* got InPlace, "):
            short(kind, "linf")(model, x, y, generator())
        assert torch.equal(x, X)


def test_under_fills_only_what_is_none(kind: type[Attack]) -> None:
    threat = ThreatModel("linf", 0.25, (0.0, 2.0))
    empty: Any = kind(**in_norm(kind, norm=None, eps=None, bounds=None))
    filled = empty.under(threat)
    assert balls(filled) == [("linf", 0.25)] and filled.bounds == (0.0, 2.0)
    partly = kind(**in_norm(kind, norm=None, eps=0.5)).under(threat)
    assert balls(partly) == [("linf", 0.5)]
    for name in ("norm", "bounds"):
        (field,) = missing = in_norm(kind, **{name: None})
        with pytest.raises(ArgumentError, match=rf"`{field}`: expected a value.*\.under"):
            kind(**missing)(Mixed(), X, Y)


@pytest.mark.parametrize(
    "options", [{"eps": -0.1}, {"eps": "8/255"}, {"norm": "l7"}, {"bounds": (1, 0)}], ids=str
)
def test_wrong_fields_are_named_at_construction(kind: type[Attack], options: Any) -> None:
    (name,) = fields = in_norm(kind, **options)
    words = "one of: .*linf.*got 'l7'" if "norm" in options else ""
    with pytest.raises((ArgumentError, ArgumentTypeError), match=f"`{name}`.*{words}"):
        kind(**fields)

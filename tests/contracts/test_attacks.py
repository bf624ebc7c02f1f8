"""What every registered attack must do."""

import dataclasses
from typing import Any

import pytest
import torch
from tiny_attacks import (
    EPS,
    balls,
    generator,
    in_norm,
    inside_one,
    predicted,
    short,
    short_under,
)
from tiny_models import Counting, Mixed, images, untouched

from roli_fast.attacks import ATTACKS, Attack, AttackResult
from roli_fast.engine import Cost, Engine
from roli_fast.errors import ArgumentError, ArgumentTypeError
from roli_fast.norms import NORMS
from roli_fast.threat import ThreatModel

X = images(6, 3, 6, 6)
Y = predicted(Mixed(), X)


@pytest.fixture(params=NORMS.names())
def norm(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=ATTACKS.names())
def kind(request: pytest.FixtureRequest) -> type[Attack]:
    return ATTACKS[request.param]


@pytest.fixture
def attack(kind: type[Attack], norm: str) -> Attack:
    return short(kind, norm)


def moved_or_failed(result: AttackResult, distance: torch.Tensor) -> torch.Tensor:
    """An attack that looks at what it found may give back an image on which it says it failed."""
    return distance > 0 if result.fooled is None else (distance > 0) | ~result.fooled


def loss(model: torch.nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return torch.nn.functional.cross_entropy(model(x), Y).item()


def test_it_is_a_frozen_dataclass_with_usable_defaults(kind: type[Attack]) -> None:
    attack: Any = kind()
    assert dataclasses.is_dataclass(kind) and attack == kind() and hash(attack) == hash(kind())
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.eps = 0.5
    assert attack.label and attack.label == attack.label.lower()


def test_labels_of_different_attacks_differ() -> None:
    labels = [ATTACKS[name]().label for name in ATTACKS]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("share", [1 / 8, 1, 10])
def test_result_is_a_new_tensor_in_ball_and_box(
    kind: type[Attack], norm: str, dtype: torch.dtype, share: float
) -> None:
    model, x = Mixed().to(dtype), X.to(dtype)
    kept = x.clone()
    eps = EPS[norm] * share
    attack = short(kind, norm, eps)
    result = attack.run(model, x, predicted(model, x), generator())
    x_adv = result.x_adv
    distance = NORMS[norm].distance(x_adv, x)
    radius = torch.tensor(eps * attack.reach).double()
    assert x_adv.shape == x.shape and x_adv.dtype == dtype and x_adv is not x
    assert (distance <= radius).all()
    assert moved_or_failed(result, distance).all()
    assert 0 <= x_adv.min() and x_adv.max() <= 1
    assert not x_adv.requires_grad and x_adv.grad_fn is None
    assert torch.equal(x, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
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
    assert balls(attack) == (expected if hasattr(attack, "norms") else expected[:1])
    model, x = Mixed().to(dtype), X.to(dtype)
    result = attack.run(model, x, predicted(model, x), generator())
    assert inside_one(result.x_adv, x, attack).all()
    assert moved_or_failed(result, (result.x_adv != x).flatten(1).sum(1)).all()
    assert 0 <= result.x_adv.min() and result.x_adv.max() <= 1


def test_it_raises_the_loss(attack: Attack) -> None:
    model = Mixed().eval()
    assert loss(model, attack(model, X, Y, generator())) > loss(model, X)


def test_the_model_is_given_back_and_the_cost_is_true(attack: Attack) -> None:
    model = Counting(Mixed())
    with untouched(model):
        result = attack.run(model, X, Y, generator())
    assert result.cost == Cost(model.forwards, model.backwards)
    assert model.forwards > 0


def test_flags_say_what_the_images_do(attack: Attack) -> None:
    model = Mixed()
    result = attack.run(model, X, Y, generator())
    if result.fooled is not None:
        assert torch.equal(result.fooled, predicted(model, result.x_adv) != Y)


def test_one_radius_a_sample(kind: type[Attack], norm: str) -> None:
    attack = short(kind, norm)
    if "eps" not in kind.options:
        refused = "`eps`: expected None, for .* takes no eps"  # never another radius in silence
        with pytest.raises(TypeError, match=refused):
            attack(Mixed(), X, Y, generator(), eps=0.1)
        return
    radii = EPS[norm] * torch.tensor([0.0, 0.25, 0.5, 1.0, 2.0, 4.0])
    result = attack.run(Mixed(), X, Y, generator(), **{"eps": radii})
    distance = NORMS[norm].distance(result.x_adv, X)
    assert (distance <= radii.double() * attack.reach).all()
    assert moved_or_failed(result, distance)[1:].all()
    with pytest.raises(ArgumentError, match="`eps`: expected"):
        attack(Mixed(), X, Y, generator(), eps=radii[:2])


def test_draws_depend_on_the_generator_alone(attack: Attack) -> None:
    model = Mixed()
    first = attack(model, X, Y, generator(1))
    with torch.random.fork_rng():
        torch.manual_seed(123)
        assert torch.equal(attack(model, X, Y, generator(1)), first)


def test_the_generator_moves_on_alike_whatever_is_found(kind: type[Attack]) -> None:
    states = []
    for eps in (1e-5, 0.5):
        source = generator()
        short(kind, "linf", eps, restarts=3)(Mixed(), X, Y, source)
        states.append(source.get_state())
    assert torch.equal(*states)


def test_without_a_generator_the_global_seed_decides(attack: Attack) -> None:
    with torch.random.fork_rng():
        results = []
        for _ in range(2):
            torch.manual_seed(5)
            results.append(attack(Mixed(), X, Y))
    assert torch.equal(*results)


@pytest.mark.parametrize("shape", [(3, 3, 6, 9), (3, 3, 9, 6), (3, 7), (1, 3, 6, 6), (0, 3, 6, 6)])
def test_other_shapes(attack: Attack, norm: str, shape: tuple[int, ...]) -> None:
    model = Mixed() if len(shape) == 4 else torch.nn.Linear(7, 4)
    x = images(*shape)
    x_adv = attack(model, x, Y[: shape[0]], generator())
    assert x_adv.shape == x.shape
    radius = torch.tensor(EPS[norm] * attack.reach).double()
    assert (NORMS[norm].distance(x_adv, x) <= radius).all()


@pytest.mark.parametrize("size", [2, 4])
def test_an_engine_that_splits_the_batch_finds_the_same(attack: Attack, size: int) -> None:
    model, whole = Mixed().double(), X.double()
    truth = attack.run(model, whole, Y, generator())
    with untouched(model):
        found = attack.run(model, whole, Y, generator(), engine=Engine(batch_size=size))
    assert torch.allclose(found.x_adv, truth.x_adv, rtol=0, atol=1e-9)
    assert found.cost.forwards > truth.cost.forwards
    images_alone = attack(model, whole, Y, generator(), engine=Engine(batch_size=size))
    assert torch.equal(images_alone, found.x_adv)
    bound = attack.run(Engine(batch_size=size).bind(model), whole, Y, generator())
    assert torch.equal(bound.x_adv, found.x_adv) and bound.cost == found.cost


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16], ids=str)
def test_an_engine_in_low_precision_stays_in_ball_and_box(
    attack: Attack, norm: str, dtype: Any
) -> None:
    model = Mixed()
    with untouched(model):
        result = attack.run(model, X, Y, generator(), engine=Engine(dtype=dtype))
    assert result.x_adv.dtype == torch.float32
    distance = NORMS[norm].distance(result.x_adv, X)
    assert (distance <= torch.tensor(EPS[norm] * attack.reach).double()).all()
    assert moved_or_failed(result, distance).all()
    assert 0 <= result.x_adv.min() and result.x_adv.max() <= 1


def test_the_default_engine_changes_no_bit(attack: Attack) -> None:
    truth = attack(Mixed(), X, Y, generator())
    assert torch.equal(attack(Mixed(), X, Y, generator(), engine=Engine()), truth)


def test_one_engine_a_model(attack: Attack) -> None:
    model = Engine(batch_size=2).bind(Mixed())
    message = "`model`: expected a model without an engine, got one bound to Engine.*Give either"
    with pytest.raises(ArgumentError, match=message):
        attack(model, X, Y, generator(), engine=Engine())


def test_channels_last_images(attack: Attack) -> None:
    model, rows = Mixed(), X.contiguous(memory_format=torch.channels_last)
    x_adv = attack(model, rows, Y, generator())
    assert torch.allclose(x_adv, attack(model, X, Y, generator()), atol=1e-6)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_under_other_gradient_modes(attack: Attack, around: Any) -> None:
    model = Mixed()
    truth = attack(model, X, Y, generator())
    with around(), untouched(model):
        assert torch.equal(attack(model, X.clone(), Y.clone(), generator()), truth)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ((X - 0.45) / 0.225, r"`x`: expected images within bounds.*models.Normalize"),
        (X.clone().index_fill_(0, torch.tensor(2), float("nan")), r"`x`: expected images within"),
        ((X * 255).byte(), r"`x`: expected a floating-point tensor.*255"),
        (X.numpy(), r"`x`: expected a floating-point tensor.*ndarray"),
    ],
)
def test_images_that_cannot_be_attacked(attack: Attack, x: Any, message: str) -> None:
    model = Mixed()
    with untouched(model), pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        attack(model, x, Y, generator())


@pytest.mark.parametrize("y", [Y.int(), Y[:2], Y + 9, Y.tolist(), None])
def test_labels_that_cannot_be_used(attack: Attack, y: Any) -> None:
    model = Mixed()
    with untouched(model), pytest.raises((ArgumentError, ArgumentTypeError), match="`y`"):
        attack(model, X, y, generator())


def test_under_fills_only_what_is_none(kind: type[Attack]) -> None:
    threat = ThreatModel("linf", 0.25, (0.0, 2.0))
    empty: Any = kind(**in_norm(kind, norm=None, eps=None, bounds=None)).under(threat)
    assert balls(empty) == [("linf", 0.25)] and empty.bounds == (0.0, 2.0)
    partly = kind(**in_norm(kind, norm=None, eps=0.5)).under(threat)
    assert balls(partly) == [("linf", 0.5)]
    partly = kind(**in_norm(kind, norm="l2", eps=None)).under(ThreatModel("l2", 0.75))
    assert balls(partly) == [("l2", 0.75)]


@pytest.mark.parametrize("name", ["norm", "bounds"])
def test_a_field_that_is_still_none_is_named(kind: type[Attack], name: str) -> None:
    (field,) = missing = in_norm(kind, **{name: None})
    with pytest.raises(ArgumentError, match=rf"`{field}`: expected a value.*\.under"):
        kind(**missing)(Mixed(), X, Y)


@pytest.mark.parametrize(
    "options",
    [{"eps": -0.1}, {"eps": "8/255"}, {"norm": "Linf"}, {"bounds": (1, 0)}],
    ids=str,
)
def test_wrong_fields_are_named_at_construction(kind: type[Attack], options: Any) -> None:
    (name,) = fields = in_norm(kind, **options)
    with pytest.raises((ArgumentError, ArgumentTypeError), match=f"`{name}`"):
        kind(**fields)


def test_an_unknown_norm_lists_the_known_ones(kind: type[Attack]) -> None:
    with pytest.raises(ArgumentError, match="one of: .*linf.*got 'l7'"):
        kind(**in_norm(kind, norm="l7"))


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (torch.ones(6, 4), "Several labels a sample and soft labels are not supported"),
        (torch.eye(4, dtype=torch.int64)[Y % 4], r"of one-hot ones take y\.argmax\(1\)"),
        (Y[:, None], r"shape \(6, 1\)\.$"),
        (Y.float(), r"torch\.float32 of shape \(6,\)\. Use y\.long\(\)"),
    ],
    ids=["several", "one-hot", "column", "float"],
)
def test_labels_of_another_kind_are_told_what_is_supported(
    kind: type[Attack], y: torch.Tensor, words: str
) -> None:
    with pytest.raises((ArgumentError, ArgumentTypeError), match=f"`y`: .*{words}"):
        short(kind, "linf")(Mixed(), X, y, generator())


@pytest.mark.parametrize("hidden", [False, True], ids=["in place", "by data"])
def test_a_model_that_changes_its_input_is_named(attack: Attack, hidden: bool) -> None:
    """And the images are as they were."""

    class InPlace(Mixed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            (x.data if hidden else x).sub_(0.5).div_(0.25)
            return super().forward(x)

    model = InPlace()
    with torch.inference_mode(hidden):
        x, y = X.clone(), Y.clone()
        with pytest.raises(ArgumentError, match=r"`model`: .* leaves its input .* got InPlace, "):
            attack(model, x, y, generator())
        assert torch.equal(x, X)

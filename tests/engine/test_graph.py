"""Passes recorded and replayed: the same numbers as ordinary ones, or a reason why not."""

import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from cpu_recorder import CpuRecorder, recording
from test_merging import Low, network
from tiny_models import SIZES, Mixed, images, tiny, untouched
from torch import Tensor, nn

from roli_fast.attacks import APGD, MSD, NFGSM, PGD, Attack, MultiAPGD, Square
from roli_fast.attacks.objective import Goal
from roli_fast.engine import Cost, Engine, InputGradient, forget, graph
from roli_fast.errors import ArgumentError
from roli_fast.losses import cross_entropy

X, Y = images(4, 3, 6, 6), torch.tensor([0, 3, 1, 2])
OFF, AUTO, ON = (Engine(cuda_graph=mode) for mode in (False, "auto", True))
ATTACK = PGD(steps=3)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[CpuRecorder]:
    with recording(monkeypatch) as found:
        yield found


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(model: Any, engine: Engine, seed: int = 0, attack: Attack = ATTACK, **given: Any) -> Tensor:
    x, y = given.pop("x", X), given.pop("y", Y)
    return attack(model, x, y, draws(seed), engine=engine, **given)


def change(model: nn.Module) -> None:
    """What an optimiser does: other weights, where they are."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.mul_(1 + 0.1 * (-1) ** number)


EVERY: list[Attack] = [
    PGD(steps=3, keep="best", momentum=0.9, eot=2, norm="l2", eps=0.5, step_size=0.1),
    PGD(steps=3, keep="adversarial", restarts=2, eps=0.1),
    PGD(steps=2, loss="kl"),
    PGD(steps=2, targets="least_likely"),
    PGD(steps=2, random_start=False, loss="dlr", step_size=None),
    APGD(steps=4, norm="l1", eps=5.0),
    MSD(steps=3),
    MultiAPGD(steps=3),
    Square(n_queries=6),
    NFGSM(),
]


@pytest.mark.parametrize("attack", EVERY, ids=lambda a: f"{type(a).__name__}-{a.label}")
def test_replays_are_ordinary_passes(recorder: CpuRecorder, attack: Attack) -> None:
    """Bit for bit, in every attack: other images, labels, draws and weights than recorded."""
    model = Mixed()
    for seed in range(3):
        x, y = images(4, 3, 6, 6, seed=seed), (Y + seed) % 4
        with untouched(model):
            found = attack.run(model, x, y, draws(seed), engine=ON)
        plain = attack.run(model, x, y, draws(seed), engine=OFF)
        assert torch.equal(found.x_adv, plain.x_adv) and found.notes == plain.notes
        assert found.cost == plain.cost
        assert found.cost.forward_images == plain.cost.forward_images
        change(model)
    assert "record" in recorder.log and recorder.log.count("replay") >= 2


def test_what_comes_a_fifth_time_is_recorded(recorder: CpuRecorder) -> None:
    model = Mixed()
    for seed in range(4):
        assert torch.equal(run(model, AUTO, seed), run(model, OFF, seed))
    assert recorder.log == ["record limited", *["replay"] * 7]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_networks_as_they_are_and_converted_and_folded(
    recorder: CpuRecorder, name: str, dtype: torch.dtype
) -> None:
    """Converted and folded weights are filled again in each call, where the recording reads."""
    model, side, attack = tiny(name), SIZES[name], PGD(steps=2)
    on = Engine(dtype=dtype, cuda_graph=True, attention="fused", fold=True)
    off = replace(on, cuda_graph=False)
    y = torch.tensor([0, 3, 4, 4])
    for seed in range(2):
        x = images(4, 3, side, side, seed=seed)
        with untouched(model):
            found = run(model, on, seed, attack, x=x, y=y)
        assert torch.equal(found, run(model, off, seed, attack, x=x, y=y))
        change(model)
    assert recorder.log == ["record", *["replay"] * 3]


def test_merged_layers(recorder: CpuRecorder) -> None:
    model = network()
    x = images(4, 12)
    for seed in range(3):
        assert torch.equal(run(model, ON, seed, x=x), run(model, OFF, seed, x=x))
        change(model)
    assert recorder.log == ["record", *["replay"] * 8]
    assert all(part.merged is None for part in model.modules() if isinstance(part, Low))


def test_a_split_pass(recorder: CpuRecorder) -> None:
    model, on = Mixed(), Engine(batch_size=3, cuda_graph=True)
    for seed in range(2):
        found = ATTACK.run(model, X, Y, draws(seed), engine=on)
        plain = ATTACK.run(model, X, Y, draws(seed), engine=replace(on, cuda_graph=False))
        assert torch.equal(found.x_adv, plain.x_adv)
        assert (found.cost, found.cost.forward_images) == (Cost(6, 6), 12)
    assert recorder.log == ["record", "record", *["replay"] * 10]


def test_labels_are_checked_before_a_replay(recorder: CpuRecorder) -> None:
    model, wrong = Mixed(), torch.tensor([0, 1, 4, 0])
    run(model, ON)
    before = list(recorder.log)
    with pytest.raises(ArgumentError, match=r"`y`: expected labels in \[0, 4\)"):
        run(model, ON, y=wrong)
    assert recorder.log == before


def test_draws_go_on_as_in_ordinary_runs(recorder: CpuRecorder) -> None:
    """From torch's global generator, recorded or not."""
    sequences = []
    for engine in (OFF, ON):
        model = Mixed()
        with torch.random.fork_rng([]):
            torch.manual_seed(5)
            sequences.append([ATTACK(model, X, Y, engine=engine) for _ in range(3)])
            sequences[-1].append(torch.rand(3))
    assert all(torch.equal(a, b) for a, b in zip(*sequences, strict=True))


def test_results_outlive_the_next_replay(recorder: CpuRecorder) -> None:
    model = Mixed()
    with InputGradient(ON.bind(model)) as gradient, torch.inference_mode():
        gradient(X, Y)
        first = gradient(X, Y)
        kept = [tensor.clone() for tensor in first]
        gradient(X * 0.5, Y)
    assert recorder.log == ["record", "replay", "replay"]
    assert all(map(torch.equal, first, kept)) and not first[0].is_inference()


def test_one_recording_for_each_that_differs(recorder: CpuRecorder) -> None:
    model, record = Mixed(), "record"

    def new(engine: Engine = ON, **given: Any) -> list[str]:
        recorder.log.clear()
        plain = replace(engine, cuda_graph=False)
        assert torch.equal(run(model, engine, **given), run(model, plain, **given))
        return [line for line in recorder.log if line == record]

    assert new() == [record]
    assert new(x=X[:3].clone(), y=Y[:3]) == [record]  # a last, smaller batch
    assert new(x=X.contiguous(memory_format=torch.channels_last)) == [record]
    assert new(attack=PGD(steps=3, loss="margin")) == [record]
    assert new(target=(Y + 1) % 4) == [record, record]  # with a look at the clean images
    assert new(replace(ON, batch_size=2)) == new(replace(ON, tf32=True)) == [record]
    with torch.autocast("cpu", torch.bfloat16):
        assert new() == [record]
    assert new() == new(x=X[:3].clone(), y=Y[:3]) == new(target=(Y + 2) % 4) == []
    assert new(attack=PGD(steps=2, norm="l2", eps=1.0), eps=images(4) / 10) == []


def test_another_model_in_the_same_place_is_recorded_anew(recorder: CpuRecorder) -> None:
    """A layer, other weights: what a recording holds as it was; the rest stands below."""
    model = nn.Sequential(Mixed(), nn.Softplus())
    kept = [parameter.data for parameter in model.parameters()]  # so that no address comes back

    def move() -> None:
        for parameter in model.parameters():
            parameter.data = parameter.data.clone() * 1.1

    run(model, ON)
    for change_it in (lambda: model.__setitem__(1, nn.Tanh()), move):
        recorder.log.clear()
        change_it()
        for seed in range(2):
            assert torch.equal(run(model, ON, seed), run(model, OFF, seed))
        assert recorder.log == ["record", *["replay"] * 5]
    assert kept


class Restless(nn.Module):
    """Keeps its last logits, as models do that are looked into."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Mixed()
        self.past: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.past.append(self.inner(x))
        return self.past[-1]


class Viewing(nn.Module):
    """Asks for a view that maps in channels_last do not have, of three images and more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        return self.head(maps.view(len(x), -1) if len(x) > 2 else maps.flatten(1))


def test_converted_weights_that_go_in_the_middle_of_an_attack(recorder: CpuRecorder) -> None:
    """Freed, they are not read by a replay any more."""
    with InputGradient(replace(ON, dtype=torch.bfloat16).bind(Viewing())) as gradient:
        for count in (2, 2, 4, 4, 4, 2, 2):
            gradient(X[:count], Y[:count])
    assert recorder.log == ["record", "replay", "record", "replay", "record", "replay"]


class Waiting(Mixed):
    """Looks at a number on the host."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1.0 if float(x.detach().sum()) > 0 else 2.0)


class Elsewhere(Mixed):
    """Has a tensor on another device."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("elsewhere", torch.empty(3, device="meta"))


@pytest.mark.parametrize(
    ("kind", "reason", "log"),
    [
        (Waiting, "RuntimeError: called a synchronizing CUDA operation", ["record"]),
        (Restless, "RuntimeError: each leaves other tensors or attributes in the model", []),
        (Elsewhere, "ArgumentError: `model`: expected all tensors on cpu, got meta.", []),
    ],
)
def test_what_cannot_be_recorded_runs_as_it_is(
    kind: type[nn.Module],
    reason: str,
    log: list[str],
    recorder: CpuRecorder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = kind()
    for seed in range(4):
        found = ATTACK.run(model, X, Y, draws(seed), engine=ON)
        assert torch.equal(found.x_adv, run(model, OFF, seed)) and found.cost == Cost(3, 3)
    run(model, ON, x=X[:2], y=Y[:2])
    assert recorder.log == log  # tried once, whatever comes then
    said = f"{graph.NONE}: its passes cannot be recorded: {reason}"
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [(logging.WARNING, said)]
    forget(model)
    run(model, ON)
    assert recorder.log == log * 2


def test_why_nothing_is_recorded(
    recorder: CpuRecorder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A callable, a loss that closes over something, a CPU."""
    model, weight = Mixed().eval(), torch.ones(4)
    run(lambda x: model(x), ON)
    with InputGradient(ON.bind(model), lambda z, y: weight * cross_entropy(z, y)) as gradient:
        gradient(X, Y)
    other = Mixed()
    with monkeypatch.context() as patched:  # undone before the recorder's own
        patched.delitem(graph.RECORDERS, "cpu")
        for engine in (AUTO, ON, ON):
            assert torch.equal(run(other, engine), run(other, OFF))
    assert recorder.log == []
    said = {r.getMessage() for r in caplog.records}
    assert len(said) == 1 and said.pop().startswith(f"cuda_graph=True: {graph.NONE}: it takes ")


def test_the_least_used_recording_goes(recorder: CpuRecorder) -> None:
    model = Mixed()
    with InputGradient(ON.bind(model)) as gradient:
        for size in range(1, graph.RECORDINGS + 2):
            gradient(images(size, 3, 6, 6), torch.zeros(size, dtype=torch.long))
        recorder.log.clear()
        for size in (graph.RECORDINGS + 1, 1):
            gradient(images(size, 3, 6, 6), torch.zeros(size, dtype=torch.long))
    assert recorder.log == ["replay", "record"]


def test_recordings_live_as_long_as_the_model(recorder: CpuRecorder) -> None:
    model = Mixed()
    run(model, replace(ON, dtype=torch.bfloat16))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_out_of_memory_frees_recordings_and_tries_once_more(recorder: CpuRecorder) -> None:
    class Full(Mixed):
        left = 0

        def forward(self, x: Tensor) -> Tensor:
            self.__class__.left -= 1
            if Full.left >= 0 and len(x) == 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(x)

    model, other = Full(), Mixed()
    run(model, ON, x=X[:2], y=Y[:2])
    run(other, ON)
    Full.left = 1
    assert torch.equal(run(model, AUTO), run(model, OFF))
    assert not graph.free_recordings()
    Full.left = 10
    with pytest.raises(torch.OutOfMemoryError):
        run(model, ON)
    assert Full.left == 9  # nothing to free: raised at once


class Part(nn.Module):
    """Numbers, words, functions and tensors in attributes and in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3))
        self.register_buffer("mean", torch.zeros(3))
        self.merged = torch.ones(2, 3)
        self.scale, self.words, self.act = 0.5, "a", lambda x: x
        self.others = [nn.Linear(1, 1)]  # not registered
        self.listed: list[Any] = [torch.ones(2), 1]


SAME: dict[str, Callable[[Any], Any]] = {
    "weights in place": lambda m: m[0].weight.data.add_(1.0),
    "statistics in place": lambda m: m[0].mean.add_(1.0),
    "a note": lambda m: m[0].listed.append("seen"),
}
OTHER: dict[str, Callable[[Any], Any]] = {
    "weights elsewhere": lambda m: setattr(m[0].weight, "data", torch.ones(2, 3)),
    "another layout": lambda m: setattr(m[0].weight, "data", torch.ones(3, 2).T),
    "merged no more": lambda m: setattr(m[0], "merged", None),
    "a number": lambda m: setattr(m[0], "scale", 0.25),
    "a word": lambda m: setattr(m[0], "words", "b"),
    "a function": lambda m: setattr(m[0], "act", lambda x: -x),
    "a hidden weight": lambda m: setattr(m[0].others[0].bias, "data", torch.ones(1)),
    "a tensor in a list": lambda m: m[0].listed.__setitem__(0, torch.ones(2)),
    "a mode": lambda m: m.eval(),
    "a hook": lambda m: m[1].register_forward_hook(lambda *_: None),
    "a layer": lambda m: m.__setitem__(1, nn.Tanh()),
    "one more": lambda m: m.append(nn.Tanh()),
}


@pytest.mark.parametrize("change_it", [*SAME, *OTHER])
def test_what_a_recording_depends_on(change_it: str) -> None:
    model = nn.Sequential(Part(), nn.ReLU())
    before, held = graph.model_state(model)  # held: no address comes back
    (SAME | OTHER)[change_it](model)
    assert (graph.model_state(model)[0] == before) is (change_it in SAME) and held


@dataclass(frozen=True)
class Weighted:
    weight: Tensor
    power: Any = 1

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        return self.weight * cross_entropy(logits, y) ** self.power


def test_a_loss_taken_apart() -> None:
    first, second = Weighted(torch.ones(2)), Weighted(torch.zeros(2))
    a, b = graph._taken_apart(first), graph._taken_apart(second)
    assert a is not None and b is not None and a.rest == b.rest
    assert a.joined(b.tensors) == second
    assert graph._taken_apart(Weighted(torch.ones(2), 2)).rest != a.rest  # type: ignore[union-attr]
    assert graph._taken_apart(Weighted(torch.ones(2), [1])) is None  # nobody sees it change
    target, clean = (graph._taken_apart(Goal("kl", Y, *at)) for at in ((X, None), (None, X)))
    assert target is not None and clean is not None and target.rest != clean.rest
    assert graph._taken_apart(nn.CrossEntropyLoss(reduction="none")) is None


@pytest.fixture
def tf32() -> Iterator[list[Any]]:
    """Where TF32 is set by torch's newer names, after which it raises where the older are read."""
    places: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv", None)]
    if not hasattr(places[1], "fp32_precision"):
        pytest.skip("torch < 2.9")
    before = [place.fp32_precision for place in places]
    yield places
    for place, value in zip(places, before, strict=True):
        place.fp32_precision = value
    torch.set_float32_matmul_precision("highest")


def test_settings_of_torch(tf32: list[Any]) -> None:
    device = torch.device("cpu")
    seen = [graph.settings(device)]

    def see() -> None:
        seen.append(graph.settings(device))

    with torch.autocast("cpu", torch.bfloat16):
        see()
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        see()
    torch.set_float32_matmul_precision("high")
    see()
    for place in tf32:
        place.fp32_precision = "ieee"
        see()
    assert len(set(seen)) == len(seen)

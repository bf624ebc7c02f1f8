"""Loops recorded and replayed: the same images as an ordinary run, or a reason why not."""

import gc
import logging
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from cpu_recorder import CpuRecorder, recording
from test_merging import Low, network
from tiny_models import SIZES, Mixed, images, tiny, untouched
from torch import Tensor, nn

from roli_fast.attacks import FGSM, NFGSM, PGD, RSFGSM, Attack
from roli_fast.engine import Cost, Engine, InputGradient, forget_graphs, graph
from roli_fast.errors import ArgumentError

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
    PGD(steps=3),
    PGD(steps=3, keep="best"),
    PGD(steps=3, momentum=0.9, eot=2),
    PGD(steps=3, norm="l2", eps=0.5, step_size=0.1),
    PGD(steps=3, norm="l1", eps=5, step_size=1),
    PGD(steps=2, loss="kl"),
    PGD(steps=2, targets="least_likely"),
    PGD(steps=2, random_start=False, loss="dlr", step_size=None),
    FGSM(),
    RSFGSM(),
    NFGSM(),
]


@pytest.mark.parametrize("attack", EVERY, ids=lambda a: f"{type(a).__name__}-{a.label}-{a.norm}")
def test_replays_are_ordinary_runs(recorder: CpuRecorder, attack: Attack) -> None:
    """Bit for bit: other images, labels, draws and weights than when it was recorded."""
    model = Mixed()
    with untouched(model):
        for seed in range(4):
            x, y = images(4, 3, 6, 6, seed=seed), (Y + seed) % 4
            found = run(model, AUTO, seed, attack, x=x, y=y)
            assert torch.equal(found, run(model, OFF, seed, attack, x=x, y=y))
            assert found.data_ptr() != x.data_ptr()
    assert recorder.log == ["record limited", "replay", "replay"]
    change(model)
    assert torch.equal(run(model, AUTO, 9, attack), run(model, OFF, 9, attack))
    assert recorder.log[-1] == "replay"


@pytest.mark.parametrize("fold", [False, True], ids=["as it is", "folded"])
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_networks_in_all_forms(
    recorder: CpuRecorder, name: str, dtype: torch.dtype, fold: bool
) -> None:
    """Converted and folded weights are filled again in each call, where the recording reads."""
    model, side = tiny(name), SIZES[name]
    on = Engine(dtype=dtype, cuda_graph=True, attention="fused", fold=fold)
    off = replace(on, cuda_graph=False)
    y = torch.tensor([0, 3, 4, 4])
    for seed in range(3):
        x = images(4, 3, side, side, seed=seed)
        with untouched(model):
            found = run(model, on, seed, x=x, y=y)
        assert torch.equal(found, run(model, off, seed, x=x, y=y))
        change(model)
    assert recorder.log == ["record", "replay", "replay"]


def test_merged_layers(recorder: CpuRecorder) -> None:
    model = network()
    x = images(4, 12)
    for seed in range(3):
        assert torch.equal(run(model, ON, seed, x=x), run(model, OFF, seed, x=x))
        change(model)
    assert recorder.log == ["record", "replay", "replay"]
    assert all(part.merged is None for part in model.modules() if isinstance(part, Low))


def test_radii_of_their_own_are_inputs(recorder: CpuRecorder) -> None:
    model = Mixed()
    for seed in range(3):
        eps = images(4, seed=seed) / 10
        assert torch.equal(run(model, ON, seed, eps=eps), run(model, OFF, seed, eps=eps))
    assert recorder.log == ["record", "replay", "replay"]


def test_a_split_pass(recorder: CpuRecorder) -> None:
    model, on = Mixed(), Engine(batch_size=3, cuda_graph=True)
    for seed in range(2):
        found = ATTACK.run(model, X, Y, draws(seed), engine=on)
        plain = ATTACK.run(model, X, Y, draws(seed), engine=replace(on, cuda_graph=False))
        assert torch.equal(found.x_adv, plain.x_adv)
        assert (found.cost, found.cost.forward_images) == (Cost(6, 6), 12)
        assert plain.cost == found.cost
    assert recorder.log == ["record", "replay"]


def test_costs_and_notes_of_a_replay(recorder: CpuRecorder) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    attack = PGD(steps=2, loss="dlr", keep="best")
    x, y = images(2, 3, 2, 2), torch.tensor([0, 2])
    results = [attack.run(model, x, y, engine=engine) for engine in (OFF, ON, ON)]
    assert recorder.log == ["record", "replay"]
    assert {(r.cost.forwards, r.cost.backwards, r.cost.backward_images) for r in results} == {
        (3, 2, 4)
    }
    assert len({r.notes for r in results}) == 1 and "margin was taken" in results[2].notes[0]


@pytest.mark.parametrize("bad", [4, -1])
def test_labels_are_checked_before_a_replay(recorder: CpuRecorder, bad: int) -> None:
    model, wrong = Mixed(), torch.tensor([0, 1, bad, 0])
    run(model, ON)
    with pytest.raises(ArgumentError, match=r"`y`: expected labels in \[0, 4\)"):
        run(model, ON, y=wrong)
    assert recorder.log == ["record"]
    with pytest.raises(ArgumentError, match="images within bounds"):  # images are checked as ever
        run(model, ON, x=X - 1)
    run(model, ON)


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


def test_one_recording_for_each_that_differs(recorder: CpuRecorder) -> None:
    model, record = Mixed(), "record"

    def steps(engine: Engine = ON, **given: Any) -> list[str]:
        recorder.log.clear()
        assert torch.equal(
            run(model, engine, **given), run(model, replace(engine, cuda_graph=False), **given)
        )
        return recorder.log

    assert steps() == [record]
    assert steps(x=X[:3].clone(), y=Y[:3]) == [record]  # a last, smaller batch
    assert steps(x=X.contiguous(memory_format=torch.channels_last)) == [record]
    assert steps(attack=PGD(steps=2)) == [record]
    assert steps(eps=0.1) == [record]
    assert steps(replace(ON, batch_size=2)) == [record]
    with torch.autocast("cpu", torch.bfloat16):
        assert steps() == [record]
    assert steps() == ["replay"]
    assert steps(x=X[:3].clone(), y=Y[:3]) == ["replay"]
    assert steps(eps=0.1) == ["replay"]


def test_weights_elsewhere_are_recorded_anew(recorder: CpuRecorder) -> None:
    model = Mixed()
    assert torch.equal(run(model, ON), run(model, OFF))
    keep = [parameter.data for parameter in model.parameters()]  # so that no address comes back
    for parameter in model.parameters():
        parameter.data = parameter.data.clone() * 1.1
    assert torch.equal(run(model, ON), run(model, OFF))
    assert torch.equal(run(model, ON, 1), run(model, OFF, 1))
    assert recorder.log == ["record", "record", "replay"] and keep


def test_another_model_in_the_same_place_is_recorded_anew(recorder: CpuRecorder) -> None:
    """A layer, a hook, a number: all that a recording holds as it was."""
    model = nn.Sequential(Mixed(), nn.Softplus())

    def double(_module: nn.Module, _given: Any, found: Tensor) -> Tensor:
        return 2 * found

    changes = (
        lambda: model.__setitem__(1, nn.Tanh()),
        lambda: model.register_forward_hook(double),
        lambda: model.__setitem__(1, nn.Softplus(beta=3.0)),
        lambda: setattr(model[1], "beta", 0.5),
    )
    run(model, ON)
    for change_it in changes:
        before = run(model, OFF)
        change_it()
        assert not torch.equal(before, run(model, OFF))
        assert torch.equal(run(model, ON), run(model, OFF))
        assert torch.equal(run(model, ON, 1), run(model, OFF, 1))
    assert recorder.log == ["record", *["record", "replay"] * 4]


class Restless(nn.Module):
    """Keeps its last logits, as models do that are looked into."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Mixed()
        self.past: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.inner(x)
        self.past.append(self.last)
        return self.last


def test_tensors_that_move_at_each_call(
    recorder: CpuRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    model = Restless()
    for _ in range(6):
        assert torch.equal(run(model, AUTO), run(model, OFF))
    assert recorder.log == []
    assert [r.getMessage() for r in caplog.records] == [
        "no CUDA graph for this model, it runs as it is: its tensors or attributes are others at "
        "every call"
    ]


class Waiting(Mixed):
    """Looks at a number on the host."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1.0 if float(x.detach().sum()) > 0 else 2.0)


def test_what_cannot_be_recorded_runs_as_it_is(
    recorder: CpuRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    model = Waiting()
    with untouched(model):
        for seed in range(4):
            found = ATTACK.run(model, X, Y, draws(seed), engine=ON)
            assert torch.equal(found.x_adv, run(model, OFF, seed))
            assert found.cost == Cost(3, 3)
        run(model, ON, x=X[:2], y=Y[:2])
    assert recorder.log == ["record"]  # tried once, whatever comes then
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (
            logging.WARNING,
            "no CUDA graph for this model, it runs as it is: its loop cannot be recorded: "
            "RuntimeError: called a synchronizing CUDA operation",
        )
    ]
    forget_graphs(model)
    run(model, ON)
    assert recorder.log == ["record", "record"]


def test_a_tensor_on_another_device(
    recorder: CpuRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    model = Mixed()
    model.register_buffer("elsewhere", torch.empty(3, device="meta"))
    assert torch.equal(run(model, ON), run(model, OFF))
    assert recorder.log == []
    assert "`model`: expected all tensors on cpu, got meta" in caplog.text


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (PGD(steps=2, keep="adversarial"), 'keep="adversarial" looks at each iterate'),
        (PGD(steps=2, restarts=2), "restarts go on with the images that are left"),
    ],
    ids=["adversarial", "restarts"],
)
def test_searches_that_look(
    recorder: CpuRecorder, caplog: pytest.LogCaptureFixture, attack: Attack, reason: str
) -> None:
    model = Mixed()
    for engine in (AUTO, AUTO, ON, ON):
        assert torch.equal(run(model, engine, attack=attack), run(model, OFF, attack=attack))
    assert recorder.log == []
    said = "cuda_graph=True: no CUDA graph for this model, it runs as it is: "
    assert [r.getMessage() for r in caplog.records] == [said + reason]


def test_no_graphs_on_a_cpu(caplog: pytest.LogCaptureFixture) -> None:
    model = Mixed()
    for engine in (AUTO, AUTO, AUTO):
        assert torch.equal(run(model, engine), run(model, OFF))
    assert caplog.records == []
    for engine in (ON, ON):
        assert torch.equal(run(model, engine), run(model, OFF))
    assert [r.getMessage() for r in caplog.records] == [
        "cuda_graph=True: no CUDA graph for this model, it runs as it is: the images are on cpu"
    ]


def test_a_callable_that_is_no_module(
    recorder: CpuRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    model = Mixed().eval()

    def call(x: Tensor) -> Tensor:
        return model(x)

    for engine in (AUTO, AUTO, ON, ON):
        assert torch.equal(run(call, engine), run(call, OFF))
    assert recorder.log == [] and len(caplog.records) == 1
    assert "it is no nn.Module" in caplog.text


def test_the_least_used_recording_goes(recorder: CpuRecorder) -> None:
    model = Mixed()
    attacks = [PGD(steps=1, eps=0.01 * number) for number in range(1, graph.SLOTS + 2)]
    for attack in attacks:
        run(model, ON, attack=attack)
    recorder.log.clear()
    run(model, ON, attack=attacks[-1])
    run(model, ON, attack=attacks[0])
    assert recorder.log == ["replay", "record"]


def test_recordings_live_as_long_as_the_model(recorder: CpuRecorder) -> None:
    model = Mixed()
    run(model, replace(ON, dtype=torch.bfloat16))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_mistake_of_the_caller_is_raised(recorder: CpuRecorder) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(5, 4))
    for _ in range(3):
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            run(model, ON)
    assert recorder.log == []


def test_inside_inference_mode(recorder: CpuRecorder) -> None:
    model = Mixed()
    with torch.inference_mode():
        for seed in range(3):
            x = X * 1.0
            assert torch.equal(run(model, ON, seed, x=x), run(model, OFF, seed, x=x))
    assert torch.equal(run(model, ON), run(model, OFF))
    assert recorder.log == ["record", "replay", "replay", "replay"]


def test_loops_of_one_s_own(recorder: CpuRecorder) -> None:
    """The interface below the attacks: descend instead of ascend."""
    model = Mixed()
    found = []
    for engine in (OFF, ON, ON):
        with InputGradient(engine.bind(model)) as gradient, torch.no_grad():

            def down(x: Tensor, y: Tensor) -> Tensor:
                for _ in range(2):
                    x = x - 0.1 * gradient(x, y)[0]
                return x

            found.append(gradient.loop("down", (X, Y), Y, down))
            assert gradient.cost == Cost(2, 2)
    assert recorder.log == ["record", "replay"]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])

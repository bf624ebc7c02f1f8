"""Inside an epoch the host of a GPU waits for nothing that the GPU computes."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import run_small
from waits import Waits, waits

from roli_fast.attacks import PGD
from roli_fast.threat import values_are_known
from roli_fast.train import loop

ONE = ["--methods=ranli", "--ranli.batch_size=24", "--ranli.epochs=2"]
SEVERAL = ["--threat.other_norms=l2,l1", "--threat.other_eps=0.2,2", "--ranli.attack.steps=2"]
KINDS = {
    "full": [],
    "lora, l1": ["--ranli.tuning=lora", "--threat.norm=l1", "--threat.eps=2"],
    "prompt, best": ["--ranli.tuning=prompt", "--ranli.attack.keep=best"],
    "rs-fgsm": ["--ranli.attack=rs-fgsm"],
    "multi_apgd": ["--ranli.attack=multi_apgd", *SEVERAL, "--ranli.attack.l1_steps=3"],
    "msd": ["--ranli.attack=msd", *SEVERAL],
    "trades, kl": ["--ranli.objective=trades", "--ranli.attack.loss=kl"],
    "gradient projection": ["--ranli.gradient_projection={}"],
    "averaging": ["--ranli.averaging={}"],
}


def second_epoch(
    monkeypatch: pytest.MonkeyPatch, around: Callable[[Callable[[], None]], None]
) -> None:
    """Let `around` run the second epoch of a stage; the first one fills caches."""
    original = loop.StageLoop._train_epoch

    def watched(self: loop.StageLoop, epoch: int, bar: Any) -> None:
        if epoch == 1:
            around(lambda: original(self, epoch, bar))
        else:
            original(self, epoch, bar)

    monkeypatch.setattr(loop.StageLoop, "_train_epoch", watched)


def allow_flushes(monkeypatch: pytest.MonkeyPatch, tell: Callable[[bool], object]) -> None:
    """`tell` when the losses of many updates begin to come over, and when they are there."""
    flush = loop.StageLoop._flush

    def allowed(self: loop.StageLoop, *arguments: Any, **options: Any) -> float:
        tell(True)
        seconds = flush(self, *arguments, **options)
        tell(False)
        return seconds

    monkeypatch.setattr(loop.StageLoop, "_flush", allowed)


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_reads_no_number_of_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """But for the losses, which come over together after many updates."""
    found = Waits()

    def counted(epoch: Callable[[], None]) -> None:
        with found:
            epoch()

    allow_flushes(monkeypatch, lambda flushes: setattr(found, "paused", flushes))
    second_epoch(monkeypatch, counted)
    run_small(tmp_path / "run", *ONE, *KINDS[kind])
    assert found.seen > 100 and found.places == []


def test_the_counter_sees_what_it_is_for() -> None:
    x = torch.rand(4)
    reads: list[Callable[[], object]] = [
        lambda: x[0].item(),
        lambda: bool((x > 2).any()),
        lambda: x[x > 0.5],
        lambda: torch.nonzero(x),
        lambda: x.new_tensor(3.0),
        lambda: torch.equal(x, x),
    ]
    assert [len(waits(read)) for read in reads] == [1] * len(reads)
    assert waits(lambda: torch.where(x > 0.5, x, 0).sum() + torch.full_like(x, 2.0)) == []


@pytest.mark.parametrize(
    ("bounds", "known"), [((0.0, 1.0), True), ((-1.0, 2.0), True), ((0.0, 0.9), False)]
)
def test_the_attack_looks_once_and_always_where_images_may_leave_its_bounds(
    bounds: tuple[float, float], known: bool
) -> None:
    """Epoch 0 is a clean one: the first attack is that of epoch 1."""
    stage = SimpleNamespace(
        attack=PGD(bounds=bounds), checked=False, _attacks=lambda epoch: epoch >= 1
    )
    found = []
    for epoch in (0, 0, 1, 1, 2):
        with loop.StageLoop._looks(stage, epoch):  # pyright: ignore[reportArgumentType]
            found.append(values_are_known())
    assert found == [False, False, False, known, known]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_on_a_gpu_never_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def strict(epoch: Callable[[], None]) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            epoch()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    modes = {True: "default", False: "error"}
    allow_flushes(monkeypatch, lambda flushes: torch.cuda.set_sync_debug_mode(modes[flushes]))
    second_epoch(monkeypatch, strict)
    run_small(tmp_path / "run", *ONE, *KINDS[kind], "--device=cuda")

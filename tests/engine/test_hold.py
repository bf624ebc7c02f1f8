"""A model that several attacks hold, in one thread, in many or in several processes, and how it is
given back."""

import datetime
import threading
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import together
from tiny_models import Mixed, images, untouched
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from roli_fast.attacks import APGD, FAB, PGD, Square
from roli_fast.data import Batch
from roli_fast.engine import Engine, Hold, bound
from roli_fast.errors import ArgumentError, ArgumentTypeError
from roli_fast.evaluate import evaluate

X, Y = images(4, 3, 6, 6), torch.tensor([0, 3, 1, 2])
ENGINES: list[dict[str, Any]] = [{}, {"fold": True}, {"dtype": torch.bfloat16}]


class TestThreads:
    @pytest.mark.parametrize("options", ENGINES)
    def test_attacks_on_one_model_at_once(self, options: Any) -> None:
        """Each finds what it finds alone, also through a wrapper of its own."""
        attack, model = PGD(eps=0.1, step_size=0.03, steps=3), Mixed()
        engine, found = Engine(**options), {}

        def search(seed: int) -> None:
            own = model if seed % 2 else nn.Sequential(nn.Identity(), model)
            draw = torch.Generator().manual_seed(seed)
            found[seed] = attack(own, X, Y, draw, engine=engine)

        with untouched(model):
            threads = [threading.Thread(target=search, args=(seed,)) for seed in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        for seed in range(4):
            draw = torch.Generator().manual_seed(seed)
            assert torch.equal(found[seed], attack(Mixed(), X, Y, draw, engine=engine))

    def test_a_thread_waits_for_the_model_and_not_for_others(self) -> None:
        model, order = Mixed(), []

        def hold(which: nn.Module, name: str) -> None:
            with Hold(which):
                order.append(name)

        with Hold(model):
            same = threading.Thread(target=hold, args=(nn.Sequential(model), "same"))
            other = threading.Thread(target=hold, args=(Mixed(), "other"))
            same.start()
            other.start()
            other.join(60)
            assert order == ["other"]
        same.join(60)
        assert order == ["other", "same"] and model.training


class TestNothingToSwitch:
    def test_a_frozen_script_and_an_exported_module_run_as_they_are(self) -> None:
        """Alone and behind a normalisation; their own weights and modes are nobody's business."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 4))
        model.eval()
        batch = {0: torch.export.Dim("batch", min=1, max=64)}
        exported = torch.export.export(model, (X,), dynamic_shapes=(batch,)).module()
        frozen = _frozen(model)
        attack = PGD(eps=0.1, step_size=0.03, steps=2)
        truth = attack(model, X, Y, torch.Generator().manual_seed(0))
        for other in (exported, frozen):
            for whole in (other, nn.Sequential(nn.Identity(), other)):
                for engine in (Engine(), Engine(fold=True)):
                    draw = torch.Generator().manual_seed(0)
                    found = attack(whole, X, Y, draw, engine=engine)
                    assert torch.allclose(found, truth, atol=1e-6)
                evaluate(whole, [Batch(X, Y, torch.arange(4))], [attack])
        with pytest.raises(ArgumentTypeError, match="`model`: expected a plain nn.Module"):
            Engine(dtype=torch.bfloat16).bind(frozen)


def _frozen(model: nn.Module) -> Any:
    """torch 2.11 says that TorchScript is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.freeze(torch.jit.trace(model, X))


WAIT = datetime.timedelta(seconds=20)


def searched() -> list[bool]:
    """Whether each attack finds on the wrapped model what it finds on the model; one process has
    images that are fooled to begin with."""
    dist.init_process_group("gloo", timeout=WAIT)
    try:
        model = Mixed()
        labels = Mixed().eval()(X).argmax(1)
        y = labels if dist.get_rank() else (labels + 1) % 4
        wrapped = DistributedDataParallel(model)
        wrapped(X).sum().backward()  # a training step in between: its buckets are built anew
        same = []
        for attack in (
            PGD(eps=0.02, step_size=0.005, steps=4, keep="adversarial", restarts=2),
            APGD(eps=0.02, steps=4),
            FAB(eps=0.02, steps=2),
            Square(eps=0.02, n_queries=10),
        ):
            found = []
            for own in (model, wrapped, nn.Sequential(nn.Identity(), wrapped)):
                found.append(attack(own, X, y, torch.Generator().manual_seed(0)))
            same.append(torch.equal(found[0], found[1]) and torch.equal(found[0], found[2]))
        dist.barrier()
        wrapped(X).sum().backward()
        return [*same, wrapped.training, "forward" not in vars(wrapped)]
    finally:
        dist.destroy_process_group()


def test_processes_whose_searches_differ() -> None:
    for member in together(2, searched):
        assert not member.error, member.error
        assert all(member.value), member.value


class FullyShardedDataParallel(nn.Sequential):
    """By its name: a real one needs several processes with a GPU each, or seconds."""


def test_shards_are_refused_where_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = nn.Sequential(FullyShardedDataParallel(Mixed()))
    bound(model)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(ArgumentError, match="`model`: expected a module whose weights are all"):
        bound(model)

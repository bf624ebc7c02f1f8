"""What is folded and what is left alone, and that looking at a model changes nothing in it."""

import gc
import weakref
from enum import Enum
from typing import Any

import pytest
import timm
import torch
from test_folding import Head, Operations, X, Y, drawn, folded, folding_engine, found_by, network
from tiny_models import images, tiny, untouched
from torch import Tensor, nn

from roli_fast.attacks import PGD
from roli_fast.engine import Engine, InputGradient, fold_plan
from roli_fast.engine.folding import Folding


class Route(Enum):
    CLEAN = 0
    ATTACKED = 1


class TestWhatIsFolded:
    def test_all_of_a_resnet(self) -> None:
        model = tiny("resnet18")
        count = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
        assert len(folded(model)) == count
        left = []
        for fold in (False, True):
            with InputGradient(Engine(fold=fold).bind(model)) as engine:
                engine(images(2, 3, 32, 32), Y[:2])  # compares one image folded and plain
                with Operations() as operations:
                    engine(images(2, 3, 32, 32), Y[:2])
            norms = [name for name in operations.names if "batch_norm" in name]
            left.append((len(norms), operations.names.count("div")))
        divisions = left[0][1] - 2  # forward and backward
        assert left == [(2 * count, divisions + 2), (0, divisions)]

    def test_activation_and_dropout_remain(self) -> None:
        model, side = network("lcnet_035")
        assert {type(m).__name__ for m in model.modules()} >= {"BatchNormAct2d"}
        names = folded(model)
        assert len(names) == sum(type(m).__name__ == "BatchNormAct2d" for m in model.modules())

    def test_an_outputs_second_reader_keeps_the_bn(self) -> None:
        class Residual(Head):
            def forward(self, x: Tensor) -> Tensor:
                maps = self.conv(x)
                return (self.norm(maps) + maps).mean((2, 3))

        class Kept(Head):
            def forward(self, x: Tensor) -> Tensor:
                self.maps = self.conv(x)
                return self.norm(self.maps).mean((2, 3))

        class Own(Head):
            def forward(self, x: Tensor) -> Tensor:
                maps = nn.functional.conv2d(x, self.conv.weight)
                return self.norm(self.conv(x)).mean((2, 3)) + maps.mean((2, 3))

        class Sized(Head):
            def forward(self, x: Tensor) -> Tensor:
                maps = self.conv(x)
                batch, channels = maps.shape[:2]
                return self.norm(maps).reshape(batch, channels, -1).mean(2)

        for kind, expected in (
            (Residual, set()),
            (Kept, set()),
            (Own, set()),
            (Sized, {"norm"}),
        ):
            model = drawn(kind(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
            assert folded(model) == expected, kind
            ours, truth = found_by(model, X, fold=True), found_by(model, X)
            assert torch.allclose(ours[0], truth[0], rtol=1e-4, atol=1e-6)

    def test_shared_layers_are_left_alone(self) -> None:
        conv, norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        tail = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
        assert not folded(nn.Sequential(conv, nn.BatchNorm2d(3), conv, nn.BatchNorm2d(3), *tail))
        twice = nn.Sequential(conv, norm, nn.Conv2d(3, 3, 3), norm, *tail)
        assert not folded(twice)

    def test_a_layer_that_others_may_call_unseen(self) -> None:
        class Borrowing(nn.Module):
            def __init__(self, conv: nn.Module) -> None:
                super().__init__()
                self.convs = [conv]

            def forward(self, x: Tensor) -> Tensor:
                return self.convs[0](x).mean((2, 3))

        class Registered(Borrowing):
            def __init__(self, conv: nn.Module) -> None:
                super().__init__(conv)
                self.conv = conv

        class Both(Head):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) + self.other(x)

        class Around(nn.Module):
            """Calls the convolution of a block that has a hook, and the block."""

            def __init__(self) -> None:
                super().__init__()
                self.block, self.norm = nn.Sequential(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)
                self.block.register_forward_hook(lambda *_: None)

            def forward(self, x: Tensor) -> Tensor:
                return (self.norm(self.block[0](x)) + self.block(x)).mean((2, 3))

        models: list[nn.Module] = [Around()]
        for kind in (Borrowing, Registered):
            models.append(Both(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
            models[-1].other = kind(models[-1].conv)
        for model in map(drawn, models):
            assert not folded(model)
            assert torch.equal(found_by(model, X, fold=True)[0], found_by(model, X)[0])

    def test_hooks_and_parametrizations_are_left_alone(self) -> None:
        def hooked(part: str) -> nn.Module:
            model = Head(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
            getattr(model, part).register_forward_hook(lambda *_: None)
            return model

        assert not folded(hooked("conv")) and not folded(hooked("norm"))
        for wrap in (nn.utils.parametrizations.weight_norm, nn.utils.spectral_norm):
            model = Head(wrap(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4))
            assert not folded(model)
        standardised = timm.layers.StdConv2d(3, 4, 3)
        assert not folded(Head(standardised, nn.BatchNorm2d(4)))

    def test_a_hook_on_a_block_is_not_called_by_looking(self) -> None:
        inner, seen = Head(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), []
        inner.register_forward_hook(lambda *_: seen.append(1))
        assert not folded(nn.Sequential(inner)) and not seen
        assert folded(inner) == {"norm"} and not seen  # the whole model's: it sees logits

    def test_bn_of_the_batch_is_left_alone(self) -> None:
        norm = nn.BatchNorm2d(4, track_running_stats=False)
        assert not folded(Head(nn.Conv2d(3, 4, 3), norm))

        class Stubborn(nn.BatchNorm2d):
            def train(self, mode: bool = True) -> "Stubborn":
                return super().train(True)

        assert not folded(Head(nn.Conv2d(3, 4, 3), Stubborn(4)))

    def test_a_forward_that_branches_is_left_alone_with_a_reason(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Branching(Head):
            def forward(self, x: Tensor) -> Tensor:
                maps = self.conv(x)
                return (self.norm(maps) if x.mean() > 0 else maps).mean((2, 3))

        model = Branching(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
        folding = Folding()
        with caplog.at_level("INFO", "roli_fast.engine"):
            for _ in range(2):
                folding.fill(model)
        assert "cannot be followed (TraceError" in str(folding.reason)
        assert len(caplog.messages) == 1 and str(folding.reason) in caplog.text
        assert torch.equal(found_by(model, X, fold=True)[0], found_by(model, X)[0])

    def test_code_that_asks_for_a_tensor_gets_one(self) -> None:
        class Asking(Head):
            def forward(self, x: Tensor) -> Tensor:
                maps = self.conv(x)
                assert not isinstance(maps.shape[0], Tensor)
                return (self.norm(maps) + maps if isinstance(x, Tensor) else maps).mean((2, 3))

        assert not folded(Asking(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))

    def test_looking_leaves_no_trace_in_the_model(self) -> None:
        class Noting(Head):
            def forward(self, x: Tensor) -> Tensor:
                self.calls = getattr(self, "calls", 0) + 1
                self.seen.append(x)
                return super().forward(x + 0 * torch.rand(1))

        model = Noting(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        model.seen = []
        with untouched(model):
            folded(model)
        assert not hasattr(model, "calls") and model.seen == []


class TestPlans:
    def test_the_structure_is_looked_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[int] = []
        real = fold_plan.Dataflow
        monkeypatch.setattr(fold_plan, "Dataflow", lambda *a: (calls.append(1), real(*a))[1])
        model = drawn(Head(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
        PGD(eps=0.1, step_size=0.05, steps=2)(model, X, Y)
        assert folded(model) == folded(model) == {"norm"} and calls == [1]
        with folding_engine(model):
            assert folded(model) == {"norm"}  # the outer engine's
        assert calls == [1] and "forward" not in vars(model.norm)
        model.norm = nn.BatchNorm2d(4, eps=0.1)
        assert folded(model) == {"norm"} and calls == [1]
        model.norm = nn.InstanceNorm2d(4)
        assert folded(model) == set()

    @pytest.mark.parametrize(
        "routes", [("clean", "attacked"), (0, 1), (Route.CLEAN, Route.ATTACKED)]
    )
    def test_a_model_that_is_told_which_bn_to_use(self, routes: Any) -> None:
        """As in AdvProp: one BN for clean images, one for attacked ones."""

        class Double(Head):
            def __init__(self) -> None:
                super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
                self.other = nn.BatchNorm2d(4)
                self.route = routes[0]

            def forward(self, x: Tensor) -> Tensor:
                norm = self.norm if self.route == routes[0] else self.other
                return norm(self.conv(x)).mean((2, 3))

        model = drawn(Double())
        for route, used in zip(routes, ("norm", "other"), strict=True):
            model.route = route
            assert folded(model) >= {used}
            ours, truth = found_by(model, X, fold=True), found_by(model, X)
            assert torch.allclose(ours[2], truth[2], rtol=1e-4, atol=1e-6)

    def test_nothing_keeps_a_model_alive(self) -> None:
        model = Head(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        assert folded(model)
        gone = [weakref.ref(module) for module in model.modules()]
        del model
        gc.collect()
        assert [ref() for ref in gone] == [None] * len(gone)


_SWITCH = {"norm": True}


class Choosing(Head):
    """Asks `self.choose()` whether its maps go through the BN."""

    def __init__(self, choose: Any) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.choose = choose

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        return (self.norm(maps) if self.choose(self) else maps).mean((2, 3))


class TestAForwardThatChooses:
    """By what no plan can see."""

    @pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}], ids=["fp32", "bf16"])
    @pytest.mark.parametrize(
        ("choose", "switch"),
        [
            (lambda m: m.cfg["norm"], lambda m, v: m.cfg.update(norm=v)),
            (lambda m: m.listed[0], lambda m, v: m.listed.__setitem__(0, v)),
            (lambda m: m.share > 0.5, lambda m, v: setattr(m, "share", 0.1 + 0.8 * v)),
            (lambda _: _SWITCH["norm"], lambda _, v: _SWITCH.update(norm=v)),
        ],
        ids=["dict", "list", "float", "global"],
    )
    def test_anew_at_each_attack(self, choose: Any, switch: Any, options: Any) -> None:
        model = drawn(Choosing(choose))
        model.cfg, model.listed, model.share = {"norm": True}, [True], 0.9
        near = 0.05 if options else 1e-4
        for value in (True, False, True):
            switch(model, value)
            with untouched(model):
                ours, truth = found_by(model, X, fold=True, **options), found_by(model, X)
            assert torch.allclose(ours[2], truth[2], rtol=near, atol=near)
        _SWITCH["norm"] = True

    def test_by_the_gradient_mode(self) -> None:
        """Folded in one mode alone, it would be wrong in the other."""
        for choose in (torch.is_grad_enabled, lambda: not torch.is_grad_enabled()):
            model = drawn(Choosing(lambda _, choose=choose: choose()))
            with InputGradient(model) as plain:
                truth = plain(X, Y)[2], plain.evaluate(X, Y)[1]
            with untouched(model), folding_engine(model) as engine:
                found = engine(X, Y)[2], engine.evaluate(X, Y)[1]
            for ours, theirs in zip(found, truth, strict=True):
                assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)
            assert not torch.allclose(*truth)

    def test_a_model_that_draws_stays_folded(self) -> None:
        class Drawing(Head):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x + torch.rand_like(x))

        model = drawn(Drawing(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
        with folding_engine(model) as engine:
            before = torch.get_rng_state()
            engine.evaluate(X, Y)
            assert "forward" in vars(model.norm)
            after = torch.get_rng_state()
            torch.set_rng_state(before)
            torch.rand_like(X)
            assert torch.equal(torch.get_rng_state(), after)

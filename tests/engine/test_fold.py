"""BN, input scaling and patch embeddings in an attack: part of the layer before, a product, and
nothing left behind; what is folded and what is left alone."""

import copy
import gc
import warnings
import weakref
from enum import Enum
from typing import Any

import pytest
import timm
import torch
from test_merging import Low
from tiny_models import SIZES, Mixed, images, tiny, untouched
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from roli_fast import engine as engines
from roli_fast.attacks import PGD
from roli_fast.engine import Engine, Foldable, InputGradient, forget
from roli_fast.engine.fold import Folding, by_patches, cuts_patches
from roli_fast.errors import RoliFastError
from roli_fast.models import Normalize

X, Y = images(4, 3, 6, 6), torch.tensor([0, 3, 1, 2])


PADS_AS_TENSORFLOW = "tf_mobilenetv3_small_minimal_100"


class Head(nn.Module):
    """Convolution, BN, mean over pixels: (B, 3, H, W) -> (B, C)."""

    def __init__(self, conv: nn.Module, norm: nn.Module, *before: nn.Module) -> None:
        super().__init__()
        self.before, self.conv, self.norm = nn.Sequential(*before), conv, norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.before(x))).mean((2, 3))


def drawn(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with BN statistics and weights that are not those it starts with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for name, low in (("running_mean", -0.5), ("running_var", 0.5)):
                    getattr(module, name).uniform_(low, low + 1, generator=generator)
                if module.affine:
                    module.weight.uniform_(0.5, 1.5, generator=generator)
                    module.bias.uniform_(-0.5, 0.5, generator=generator)
    return model


def found_by(model: nn.Module, x: Tensor, y: Tensor = Y, **options: Any) -> tuple[Tensor, ...]:
    with InputGradient(Engine(**options).bind(model)) as engine:
        return engine(x, y)


def folding_engine(model: nn.Module) -> InputGradient:
    return InputGradient(Engine(fold=True).bind(model))


def folded(model: nn.Module) -> set[str]:
    """Names of the BN layers that an engine folds."""
    with folding_engine(model):
        return {
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and "forward" in vars(module)
        }


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class TestNumbers:
    def test_one_convolution_by_hand(self) -> None:
        """w 3, b 1; mean 2, var 3, eps 1, gamma 4, beta 5: scale 4 / 2, so w' 6, b' 2 (1-2) + 5."""
        conv, norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=1.0)
        for tensor, value in (
            (conv.weight, 3.0),
            (conv.bias, 1.0),
            (norm.running_mean, 2.0),
            (norm.running_var, 3.0),
            (norm.weight, 4.0),
            (norm.bias, 5.0),
        ):
            nn.init.constant_(tensor, value)
        model = Head(conv, norm)
        with folding_engine(model) as engine:
            assert (conv.weight.item(), conv.bias.item()) == (6.0, 3.0)
            grad, _, logits = engine(
                torch.ones(1, 1, 1, 1), torch.tensor([0]), lambda z, y: z[:, 0]
            )
        assert (logits.item(), grad.item()) == (9.0, 6.0)
        assert (conv.weight.item(), conv.bias.item()) == (3.0, 1.0)

    def test_one_division_by_hand(self) -> None:
        """(x - 0.5) / 0.25 before w 3: the weight is 12, and the border of zeros stays zero."""
        conv = nn.Conv2d(1, 1, 1, padding=1, bias=False)
        nn.init.constant_(conv.weight, 3.0)
        scaling = Normalize([0.5], [0.25])
        model = Head(conv, nn.Identity(), scaling)
        with folding_engine(model) as engine:
            assert scaling.folded and conv.weight.item() == 12.0 and conv.bias is None
            logits = engine(torch.full((1, 1, 1, 1), 0.75), torch.tensor([0]))[2]
        assert logits.item() == pytest.approx(3.0 / 9)  # 9 pixels, of which the border is 0
        assert not scaling.folded and isinstance(scaling, Foldable)

    @pytest.mark.parametrize("name", [*SIZES, "lcnet_035", "densenet121", PADS_AS_TENSORFLOW])
    def test_networks_in_fp64(self, name: str) -> None:
        model, side = network(name)
        x, y = images(2, 3, side, side).double(), torch.tensor([0, 3])
        model = drawn(model).double()
        with untouched(model):
            found = found_by(model, x, y, fold=True)
        for ours, truth in zip(found, found_by(model, x, y), strict=True):
            assert torch.allclose(ours, truth, rtol=1e-12, atol=1e-12 * truth.abs().max().item())

    def test_fp32_is_as_near_to_the_truth_folded_as_not(self) -> None:
        model, x = drawn(tiny("resnet18")), images(8, 3, 32, 32)
        y = torch.arange(8) % 5
        truth = found_by(copy.deepcopy(model).double(), x.double(), y)
        errors = []
        for fold in (False, True):
            found = found_by(model, x, y, fold=fold)
            errors.append([(a - b).norm() / b.norm() for a, b in zip(found, truth, strict=True)])
        assert all(mine < 2 * plain for plain, mine in zip(*errors, strict=True))

    @pytest.mark.parametrize(
        "conv",
        [
            lambda: nn.Conv2d(3, 6, 3, groups=3),
            lambda: nn.Conv2d(3, 6, 3, padding=2, padding_mode="reflect", dilation=2),
            lambda: nn.ConvTranspose2d(3, 6, 3, stride=2, output_padding=1),
        ],
        ids=["depthwise", "reflect", "transposed"],
    )
    @pytest.mark.parametrize("affine", [True, False])
    def test_kinds_of_convolution(self, conv: Any, affine: bool) -> None:
        model = drawn(Head(conv(), nn.BatchNorm2d(6, affine=affine))).double()
        assert folded(model) == {"norm"}
        for ours, truth in zip(
            found_by(model, X.double(), fold=True), found_by(model, X.double()), strict=True
        ):
            assert torch.allclose(ours, truth, rtol=1e-12, atol=1e-14)

    def test_a_linear_layer(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(108, 4), nn.BatchNorm1d(4)).double()
        assert folded(drawn(model)) == {"2"}
        ours, truth = found_by(model, X.double(), fold=True), found_by(model, X.double())
        assert torch.allclose(ours[0], truth[0], rtol=1e-12)

    def test_a_linear_layer_whose_channels_are_not_those_of_bn(self) -> None:
        """For BN the channels of (B, L, C) are L; with L = C nothing but the axes tells."""
        model = nn.Sequential(nn.Flatten(2), nn.Linear(36, 3), nn.BatchNorm1d(3), nn.Flatten())
        with untouched(model), pytest.raises(RoliFastError, match="fold=False"):
            found_by(model, X, fold=True)
        maps = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm2d(3), nn.BatchNorm1d(3))
        assert not folded(maps)


def network(name: str) -> tuple[nn.Module, int]:
    """A tiny classifier of the name, or the head of a timm network with normalisation."""
    if name in SIZES:
        return tiny(name), SIZES[name]
    options = dict(growth_rate=4, block_config=(2, 2)) if name == "densenet121" else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = timm.create_model(name, num_classes=5, **options)
    return nn.Sequential(Normalize([0.4, 0.5, 0.6], [0.2, 0.3, 0.4]), backbone), 32


class TestTheModelComesBack:
    def test_also_after_an_exception(self) -> None:
        model = Mixed()
        before = {name: vars(module).copy() for name, module in model.named_modules()}
        tensors = [id(t) for t in (*model.parameters(), *model.buffers())]
        with (
            untouched(model),
            pytest.raises(ZeroDivisionError),
            folding_engine(model),
        ):
            assert "forward" in vars(model.norm)
            raise ZeroDivisionError
        assert {name: vars(m).keys() for name, m in model.named_modules()} == {
            name: held.keys() for name, held in before.items()
        }
        assert [id(t) for t in (*model.parameters(), *model.buffers())] == tensors

    def test_a_convolution_without_a_bias_has_none_again(self) -> None:
        model = drawn(Head(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)))
        names = list(model.state_dict())
        with folding_engine(model):
            assert model.conv.bias is not None and not model.conv.bias.requires_grad
        assert model.conv.bias is None and list(model.state_dict()) == names

    def test_a_fold_that_fails_leaves_the_model_as_it_was(self) -> None:
        model = tiny("resnet18")
        model.backbone.layer4[0].bn2.running_mean = torch.zeros(16, device="meta")
        keys = {name: vars(m).keys() for name, m in model.named_modules()}
        with (
            pytest.raises((RuntimeError, NotImplementedError)),
            folding_engine(model),
        ):
            raise AssertionError
        assert {name: vars(m).keys() for name, m in model.named_modules()} == keys
        assert not model.normalize.folded

    def test_new_weights_are_seen_and_second_tensors_kept(self) -> None:
        model = drawn(Head(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
        found, addresses = [], []
        for seed in range(3):
            drawn(model, seed)
            with folding_engine(model) as engine:
                addresses.append((model.conv.weight.data_ptr(), model.conv.bias.data_ptr()))
                found.append(engine(X, Y)[0])
            assert torch.allclose(found[-1], found_by(model, X)[0], rtol=1e-4, atol=1e-7)
        assert len(set(addresses)) == 1 and not torch.equal(found[0], found[1])
        forget(model)
        assert folded(model.double()) == {"norm"}

    def test_inside_inference_mode(self) -> None:
        model = drawn(Head(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
        with torch.inference_mode():
            inside = found_by(model, X, fold=True)[0]
        assert torch.equal(found_by(model, X, fold=True)[0], inside)


class TestShortPasses:
    def test_folded_weights_are_what_is_converted(self) -> None:
        """Nothing is lost by it: over a few networks logits and gradients are no further off."""
        x, y = images(8, 3, 32, 32), torch.arange(8) % 5
        off, along = torch.zeros(2), torch.zeros(2)
        for seed in range(6):
            model = drawn(tiny("resnet18"), seed)
            truth = found_by(model, x, y)
            for fold in (False, True):
                short = Engine(fold=fold, dtype=torch.bfloat16).bind(model)
                with untouched(model), InputGradient(short) as engine:
                    engine(x, y)  # compares one image folded and plain
                    with Operations() as operations:
                        found = engine(x, y)
                assert fold != any("batch_norm" in name for name in operations.names)
                off[int(fold)] += (found[2] - truth[2]).norm() / truth[2].norm()
                grads = (found[0].flatten(1), truth[0].flatten(1))
                along[int(fold)] += nn.functional.cosine_similarity(*grads).mean() / 6
        assert 0 < off[1] < 1.1 * off[0] and along[1] > along[0] - 0.01 > 0.95

    def test_not_in_fp16(self) -> None:
        """gamma 1e-4: of weights of 1e-3 fp16 would keep two bits."""
        model = Head(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
        nn.init.constant_(model.norm.weight, 1e-4)
        Folding(model, torch.float16).fill()
        assert "forward" not in vars(model.norm)
        with torch.autocast("cpu", torch.float16):
            Folding(model, None).fill()
        assert "forward" not in vars(model.norm)


def test_beside_merged_layers() -> None:
    low = Low(64, 4)
    maps = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    model = drawn(nn.Sequential(*maps, low))
    truth = found_by(model, X)
    with untouched(model):
        found = found_by(model, X, fold=True)
    assert set(low.ways) == {"torch.float32"} and low.merged is None
    assert torch.allclose(found[0], truth[0], rtol=1e-3, atol=1e-6)


def test_a_script_module_and_a_callable_run_as_they_are() -> None:
    model = drawn(Head(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).eval()
    truth = found_by(model, X)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.trace(model, X)
    for run in (scripted, lambda x: model(x)):
        assert torch.allclose(found_by(run, X, fold=True)[0], truth, rtol=1e-5, atol=1e-7)


class Route(Enum):
    CLEAN = 0
    ATTACKED = 1


class TestWhatIsFolded:
    def test_all_of_a_resnet(self) -> None:
        model = tiny("resnet18")
        count = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
        assert len(folded(model)) == count

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
        with caplog.at_level("INFO", "roli_fast.engine"):
            for _ in range(2):
                assert not folded(model)
        (said,) = caplog.messages
        assert said.startswith("BN of Branching is not folded: its forward cannot be followed (Tra")
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
        real = engines.fold._traced
        monkeypatch.setattr(engines.fold, "_traced", lambda *a: (calls.append(1), real(*a))[1])
        model = drawn(Head(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
        PGD(eps=0.1, step_size=0.05, steps=2)(model, X, Y)
        assert folded(model) == folded(model) == {"norm"} and calls == [1]
        with folding_engine(model):
            assert folded(model) == {"norm"}  # the outer engine's
        assert "forward" not in vars(model.norm)
        model.norm = nn.BatchNorm2d(4, eps=0.1)
        assert folded(model) == {"norm"}
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


LAYOUTS = [torch.contiguous_format, torch.channels_last]


def both_ways(layer: nn.Conv2d, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Maps and input gradient of the convolution and of the product."""
    found = []
    for forward in (layer, lambda x: by_patches(layer, x)):
        leaf = x.clone().requires_grad_()
        maps = forward(leaf)
        weight = torch.linspace(-1, 1, maps.numel(), dtype=maps.dtype).view_as(maps)
        found.append((maps, torch.autograd.grad((maps * weight).sum(), leaf)[0]))
    return found


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kernel", [4, (4, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_convolution(layout: Any, kernel: Any, bias: bool) -> None:
    """Also where the last rows and columns fill no patch."""
    layer = nn.Conv2d(3, 6, kernel, kernel, bias=bias).double().to(memory_format=layout)
    x = images(2, 3, 17, 26).double().contiguous(memory_format=layout)
    (maps, grad), (ours, our_grad) = both_ways(layer, x)
    assert torch.allclose(ours, maps, rtol=0, atol=1e-14) and ours.stride() == maps.stride()
    assert torch.allclose(our_grad, grad, rtol=0, atol=1e-14)
    assert (our_grad[:, :, 16:] == 0).all() and (our_grad[..., 24:] == 0).all()


def test_strided_images_and_one_channel() -> None:
    layer = nn.Conv2d(1, 5, 4, 4).double()
    for x in (images(3, 1, 8, 8), images(3, 2, 8, 8)[:, 1:], images(3, 1, 8, 16)[..., ::2]):
        (maps, grad), (ours, our_grad) = both_ways(layer, x.double())
        assert torch.allclose(ours, maps, rtol=0, atol=1e-14)
        assert torch.allclose(our_grad, grad, rtol=0, atol=1e-14)


def test_what_cuts_patches() -> None:
    assert cuts_patches(nn.Conv2d(3, 5, 4, 4)) and cuts_patches(nn.Conv2d(3, 5, 4, 4, "valid"))
    other: list[nn.Module] = [
        nn.Conv2d(3, 5, 4, 2),
        nn.Conv2d(3, 5, 4, 4, padding=1),
        nn.Conv2d(3, 3, 4, 4, groups=3),
        nn.Conv2d(3, 5, 4, 4, dilation=2),
        nn.Conv2d(3, 5, 1),
        nn.Conv2d(96, 192, 4, 4),  # feature maps
        nn.Conv3d(3, 5, 4, 4),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 5, 4, 4)),
    ]
    assert not any(map(cuts_patches, other))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_an_engine(dtype: torch.dtype) -> None:
    model, x, y = tiny(), images(4, 3, 8, 8), torch.tensor([0, 3, 1, 4])
    layer = model.backbone.patch_embed.proj
    seen: list[str] = []
    layer.register_forward_hook(lambda *_: seen.append("called"))
    with InputGradient(Engine(dtype=dtype).bind(model)) as engine:
        truth = engine(x, y)
    with untouched(model), InputGradient(Engine(dtype=dtype, fold=True).bind(model)) as engine:
        assert "forward" in vars(layer)
        found = engine(x, y)
    assert "forward" not in vars(layer) and seen == ["called"] * 2
    close = 1e-5 if dtype == torch.float32 else 0.02
    for ours, theirs in zip(found, truth, strict=True):
        assert (ours - theirs).norm() <= close * theirs.norm()


def test_a_view_of_contiguous_maps_still_works() -> None:
    """In bf16 too, where maps are in channels_last until a model asks for such a view."""

    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Conv2d(3, 5, 4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.proj(x).view(len(x), 5, -1).mean(2)

    for dtype in (torch.float32, torch.bfloat16):
        with InputGradient(Engine(dtype=dtype, fold=True).bind(Viewing())) as engine:
            assert engine(images(4, 3, 8, 8), torch.zeros(4, dtype=torch.long))[2].shape == (4, 5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_on_a_device(name: str) -> None:
    """Where the patch embedding stays the convolution that it is."""
    model = drawn(tiny(name)).double().cuda()
    x, y = images(4, 3, SIZES[name], SIZES[name]).double().cuda(), Y.cuda()
    for ours, truth in zip(
        found_by(model, x, y, fold=True), found_by(model, x, y, fold=False), strict=True
    ):
        assert torch.allclose(ours, truth, rtol=1e-10, atol=1e-12)

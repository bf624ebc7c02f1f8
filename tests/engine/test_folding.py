"""BN and input scaling in an attack: part of the convolution, and nothing left behind."""

import copy
import warnings
from typing import Any

import pytest
import timm
import torch
from test_merging import Low
from tiny_models import SIZES, Mixed, images, tiny, untouched
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from roli_fast.engine import Engine, Foldable, InputGradient, forget_folded
from roli_fast.engine.folding import Folding
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
            lambda: nn.ConvTranspose2d(3, 6, 3, stride=2, groups=3, bias=False),
        ],
        ids=["depthwise", "reflect", "transposed", "transposed in groups"],
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
        forget_folded(model)
        assert folded(model.double()) == {"norm"}

    def test_copies_inside_and_after(self) -> None:
        model = drawn(Head(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).eval()
        expected = model(X)
        with folding_engine(model):
            inside = copy.deepcopy(model)
        after = copy.deepcopy(model)
        assert torch.allclose(inside(X), expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(after(X), expected)

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
        folding = Folding()
        folding.fill(model, torch.float16)
        assert "forward" not in vars(model.norm) and "fp16" in str(folding.reason)
        with torch.autocast("cpu", torch.float16):
            folding.fill(model)
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


def test_compiled_passes() -> None:
    model = drawn(Head(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with folding_engine(model):
        inside = compiled(X)
    assert torch.allclose(inside, model(X), rtol=1e-5, atol=1e-6)
    assert torch.equal(compiled(X), model(X))
    assert not folded(compiled)  # a wrapper whose code is fixed


def test_a_script_module_and_a_callable_run_as_they_are() -> None:
    model = drawn(Head(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).eval()
    truth = found_by(model, X)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.trace(model, X)
    for run in (scripted, lambda x: model(x)):
        assert torch.allclose(found_by(run, X, fold=True)[0], truth, rtol=1e-5, atol=1e-7)


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

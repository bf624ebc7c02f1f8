"""BN and patch embeddings in an attack: part of the convolution before, a product, and nothing left
behind; what is folded and what is left alone."""

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from test_merging import Low
from tiny_models import SIZES, Mixed, images, tiny, untouched
from torch import Tensor, nn
from waits import waits

from roli_fast.attacks import PGD
from roli_fast.engine import Engine, InputGradient, fold, forget
from roli_fast.engine.fold import Folding, by_patches, cuts_patches
from roli_fast.models import Normalize
from roli_fast.threat import known_values

X, Y = images(4, 3, 6, 6), torch.tensor([0, 3, 1, 2])
FOLD = Engine(fold=True)


class Head(nn.Module):
    """Convolution, BN, mean over pixels: (B, 3, H, W) -> (B, C)."""

    def __init__(self, conv: nn.Module | None = None, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.norm = conv or nn.Conv2d(3, 4, 3), norm or nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).mean((2, 3))


def drawn(model: Any, seed: int = 0) -> Any:
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


def found_by(model: Any, x: Tensor = X, y: Tensor = Y, **options: Any) -> tuple[Tensor, ...]:
    with InputGradient(Engine(**options).bind(model)) as engine:
        return engine(x, y)


def folded(model: nn.Module) -> set[str]:
    """Names of the BN layers that an engine folds."""
    with InputGradient(FOLD.bind(model)):
        return {
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and "forward" in vars(module)
        }


def agrees(model: Any, x: Tensor = X, near: float = 1e-4, **options: Any) -> bool:
    """Whether gradient and logits are those of the plain model, and that is given back."""
    with untouched(model):
        ours, truth = found_by(model, x, fold=True, **options), found_by(model, x)
    return all(torch.allclose(a, b, rtol=near, atol=near / 100) for a, b in zip(ours, truth))  # noqa: B905


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
            nn.init.constant_(tensor, value)  # type: ignore[arg-type]
        model = Head(conv, norm)
        with InputGradient(FOLD.bind(model)) as engine:
            assert (conv.weight.item(), conv.bias.item()) == (6.0, 3.0)  # type: ignore[union-attr]
            grad, _, logits = engine(
                torch.ones(1, 1, 1, 1), torch.tensor([0]), lambda z, y: z[:, 0]
            )
        assert (logits.item(), grad.item()) == (9.0, 6.0)
        assert (conv.weight.item(), conv.bias.item()) == (3.0, 1.0)  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        ("name", "norms"),
        [
            ("vit_tiny_patch16_224", 0),
            ("resnet18", 13),
            ("lcnet_035", 27),  # BatchNormAct2d, whose activation remains
            ("densenet121", 5),
            ("tf_mobilenetv3_small_minimal_100", 34),  # pads as TensorFlow
        ],
    )
    def test_networks_in_fp64(self, name: str, norms: int) -> None:
        model, side = tiny(name) if name in SIZES else network(name), SIZES.get(name, 32)
        model = drawn(model).double()
        assert len(folded(model)) == norms
        x, y = images(2, 3, side, side).double(), torch.tensor([0, 3])
        with untouched(model):
            found = found_by(model, x, y, fold=True)
        for ours, truth in zip(found, found_by(model, x, y), strict=True):
            assert torch.allclose(ours, truth, rtol=1e-12, atol=1e-12 * truth.abs().max().item())

    def test_as_near_to_the_truth_folded_as_not(self) -> None:
        x, y, off = images(4, 3, 32, 32), torch.arange(4) % 5, torch.zeros(2, 3)
        for seed in range(3):
            model = drawn(tiny("resnet18"), seed)
            truth = found_by(copy.deepcopy(model).double(), x.double(), y)
            for way in range(2):
                found = found_by(model, x, y, fold=bool(way), dtype=torch.bfloat16)
                pairs = zip(found, truth, strict=True)
                off[way] += torch.stack([(a - b).norm() / b.norm() for a, b in pairs])
        assert (off[0] > 0).all() and (off[1] < 2 * off[0]).all()

    @pytest.mark.parametrize(
        "conv",
        [
            nn.Conv2d(3, 6, 3, groups=3),
            nn.Conv2d(3, 6, 3, padding=2, padding_mode="reflect", dilation=2, bias=False),
        ],
        ids=["depthwise", "reflect"],
    )
    @pytest.mark.parametrize("affine", [True, False])
    def test_kinds_of_convolution(self, conv: Any, affine: bool) -> None:
        model = drawn(Head(conv, nn.BatchNorm2d(6, affine=affine))).double()
        assert folded(model) == {"norm"} and agrees(model, X.double(), 1e-12)

    def test_not_in_fp16(self) -> None:
        """gamma 1e-4: of weights of 1e-3 fp16 would keep two bits."""
        model = Head().eval()
        nn.init.constant_(model.norm.weight, 1e-4)  # type: ignore[arg-type]
        Folding(model, torch.float16).fill()
        with torch.autocast("cpu", torch.float16):
            Folding(model, None).fill()
        assert "forward" not in vars(model.norm)

    def test_beside_merged_layers(self) -> None:
        low = Low(64, 4)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), low)
        assert agrees(drawn(model), near=1e-3) and set(low.ways) == {"torch.float32"}


def network(name: str) -> nn.Module:
    options = dict(growth_rate=4, block_config=(2, 2)) if name == "densenet121" else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = timm.create_model(name, num_classes=5, **options)
    return nn.Sequential(Normalize([0.4, 0.5, 0.6], [0.2, 0.3, 0.4]), backbone)


class TestTheModelComesBack:
    def test_also_after_an_exception(self) -> None:
        model = Mixed()
        before = {name: list(vars(module)) for name, module in model.named_modules()}
        tensors = [id(t) for t in (*model.parameters(), *model.buffers())]
        with untouched(model), pytest.raises(ZeroDivisionError), InputGradient(FOLD.bind(model)):
            assert "forward" in vars(model.norm)
            raise ZeroDivisionError
        assert {name: list(vars(module)) for name, module in model.named_modules()} == before
        assert [id(t) for t in (*model.parameters(), *model.buffers())] == tensors

    def test_second_weights_are_kept_and_follow_the_weights(self) -> None:
        model = Head(nn.Conv2d(3, 4, 3, bias=False))
        names, addresses, found = list(model.state_dict()), set(), []
        for seed in range(3):
            drawn(model, seed)
            with InputGradient(FOLD.bind(model)) as engine:
                addresses.add((model.conv.weight.data_ptr(), model.conv.bias.data_ptr()))  # type: ignore[operator, union-attr]
                found.append(engine(X, Y)[0])
            assert torch.allclose(found[-1], found_by(model)[0], rtol=1e-4, atol=1e-7)
        assert len(addresses) == 1 and not torch.equal(found[0], found[1])
        assert list(model.state_dict()) == names and model.conv.bias is None
        with torch.inference_mode():
            assert torch.equal(found_by(model, fold=True)[0], found[-1])
        forget(model)
        assert folded(model.double()) == {"norm"}

    def test_nothing_keeps_a_model_alive(self) -> None:
        model = Head()
        assert folded(model)
        gone = [weakref.ref(module) for module in model.modules()]
        del model
        gc.collect()
        assert [ref() for ref in gone] == [None] * len(gone)


class Residual(Head):
    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        return (self.norm(maps) + maps).mean((2, 3))


class Sized(Head):
    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        batch, channels = maps.shape[:2]
        return self.norm(maps).reshape(batch, channels, -1).mean(2)


class Branching(Head):
    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        return (self.norm(maps) if x.mean() > 0 else maps).mean((2, 3))


class Own(Head):
    """Reads the convolution's weight itself, which no symbol tells."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + nn.functional.conv2d(x, self.conv.weight).mean((2, 3))  # type: ignore[arg-type]


class Stubborn(nn.BatchNorm2d):
    def train(self, mode: bool = True) -> "Stubborn":
        return super().train(True)


TAIL = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
CONV, NORM = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
LEFT_ALONE: dict[str, Callable[[], nn.Module]] = {
    "a second reader": Residual,
    "a forward that branches": Branching,
    "a convolution called twice": lambda: nn.Sequential(
        CONV, nn.BatchNorm2d(3), CONV, nn.BatchNorm2d(3), *TAIL
    ),
    "a BN called twice": lambda: nn.Sequential(CONV, NORM, nn.Conv2d(3, 3, 3), NORM, *TAIL),
    "a linear layer": lambda: nn.Sequential(nn.Flatten(), nn.Linear(108, 4), nn.BatchNorm1d(4)),
    "a subclass": lambda: Head(timm.layers.StdConv2d(3, 4, 3)),
    "parametrization": lambda: Head(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))),
    "spectral norm": lambda: Head(nn.utils.spectral_norm(nn.Conv2d(3, 4, 3))),
    "a BN that stays in train mode": lambda: Head(norm=Stubborn(4)),
    "statistics of the batch": lambda: Head(norm=nn.BatchNorm2d(4, track_running_stats=False)),
}


class TestWhatIsFolded:
    def test_asking_a_size_is_no_reading(self) -> None:
        assert folded(drawn(Sized())) == {"norm"}

    @pytest.mark.parametrize("kind", LEFT_ALONE)
    def test_left_alone(self, kind: str) -> None:
        model = LEFT_ALONE[kind]()
        assert not folded(model)

    def test_what_no_symbol_tells_the_first_image_does(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        model = drawn(Own())
        with caplog.at_level("INFO", "roli_fast.engine"):
            assert agrees(model) and not folded(model)
        (said,) = caplog.messages
        assert "is not folded: its forward goes other ways than when it was looked at" in said

    def test_the_first_attack_alone_looks(self) -> None:
        """Each look waits for a GPU."""
        model = drawn(Head())
        assert agrees(model)
        with known_values():
            assert waits(lambda: found_by(model, fold=True)) == []

    def test_hooks(self) -> None:
        for part in ("conv", "norm"):
            model = Head()
            getattr(model, part).register_forward_hook(lambda *_: None)
            assert not folded(model)
        inner, seen = Head(), []
        inner.register_forward_hook(lambda *_: seen.append(1))
        assert not folded(nn.Sequential(inner)) and not seen  # not called by looking
        assert folded(inner) == {"norm"} and not seen  # the whole model's: it sees logits

    def test_looking_leaves_no_trace_in_the_model(self) -> None:
        class Noting(Head):
            def forward(self, x: Tensor) -> Tensor:
                self.calls = getattr(self, "calls", 0) + 1
                self.seen.append(x)
                return super().forward(x + 0 * torch.rand(1))

        model = Noting()
        model.seen = []
        with untouched(model):
            assert folded(model)
        assert not hasattr(model, "calls") and model.seen == []

    def test_the_structure_is_looked_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[int] = []
        real = fold._traced
        monkeypatch.setattr(fold, "_traced", lambda *a: (calls.append(1), real(*a))[1])
        model = drawn(Head())
        PGD(eps=0.1, step_size=0.05, steps=2)(model, X, Y, engine=FOLD)
        assert folded(model) == folded(model) == {"norm"} and calls == [1]
        with InputGradient(FOLD.bind(model)):
            assert folded(model) == {"norm"}  # the outer engine's
            assert "forward" in vars(model.norm)
        model.norm = nn.BatchNorm2d(4, eps=0.1)
        assert folded(model) == {"norm"}
        model.norm = nn.InstanceNorm2d(4)
        assert folded(model) == set()


class Choosing(Head):
    """Asks `self.choose()` whether its maps go through the BN."""

    def __init__(self, choose: Any) -> None:
        super().__init__()
        self.choose = choose

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        return (self.norm(maps) if self.choose(self) else maps).mean((2, 3))


class TestAForwardThatChooses:
    """By what no look at the structure can see."""

    @pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}], ids=["fp32", "bf16"])
    def test_by_an_attribute(self, options: Any) -> None:
        model = drawn(Choosing(lambda m: m.route))
        for value in (True, False, True):
            model.route = value
            with untouched(model):
                ours, truth = found_by(model, fold=True, **options), found_by(model)
            near = 0.05 if options else 1e-4
            assert torch.allclose(ours[2], truth[2], rtol=near, atol=near)

    def test_a_model_that_draws_stays_folded(self) -> None:
        class Drawing(Head):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x + torch.rand_like(x))

        model = drawn(Drawing())
        with torch.random.fork_rng([]), InputGradient(FOLD.bind(model)) as engine:
            before = torch.get_rng_state()
            engine.evaluate(X, Y)
            assert "forward" in vars(model.norm)
            after = torch.get_rng_state()
            torch.set_rng_state(before)
            torch.rand_like(X)
            assert torch.equal(torch.get_rng_state(), after)


def both_ways(layer: nn.Conv2d, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Maps and input gradient of the convolution and of the product."""
    found = []
    for forward in (layer, lambda x: by_patches(layer, x)):
        leaf = x.clone().requires_grad_()
        maps = forward(leaf)
        weight = torch.linspace(-1, 1, maps.numel(), dtype=maps.dtype).view_as(maps)
        found.append((maps, torch.autograd.grad((maps * weight).sum(), leaf)[0]))
    return found


class TestPatches:
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
    @pytest.mark.parametrize(("kernel", "bias"), [(4, True), ((4, 8), False)])
    def test_equals_the_convolution(self, layout: Any, kernel: Any, bias: bool) -> None:
        """Also where the last rows and columns fill no patch, and for images with strides."""
        layer = nn.Conv2d(3, 6, kernel, kernel, bias=bias).double().to(memory_format=layout)
        x = images(2, 3, 17, 26).double().contiguous(memory_format=layout)
        for given in (x, x[..., ::2]):
            (maps, grad), (ours, our_grad) = both_ways(layer, given)
            assert torch.allclose(ours, maps, rtol=0, atol=1e-14)
            assert torch.allclose(our_grad, grad, rtol=0, atol=1e-14)
            assert given is not x or ours.stride() == maps.stride()
            assert (our_grad[:, :, 16:] == 0).all() and (our_grad[..., 24:] == 0).all()

    def test_what_cuts_patches(self) -> None:
        assert cuts_patches(nn.Conv2d(3, 5, 4, 4)) and cuts_patches(nn.Conv2d(3, 5, 4, 4, "valid"))
        other: list[nn.Module] = [
            nn.Conv2d(3, 5, 4, 2),
            nn.Conv2d(3, 5, 4, 4, padding=1),
            nn.Conv2d(3, 3, 4, 4, groups=3),
            nn.Conv2d(3, 5, 4, 4, dilation=2),
            nn.Conv2d(3, 5, 1),
            nn.Conv2d(96, 192, 4, 4),  # feature maps
            nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 5, 4, 4)),
        ]
        assert not any(map(cuts_patches, other))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_in_an_engine(self, dtype: torch.dtype) -> None:
        """Hooks are called; a view of contiguous maps works in either memory layout."""

        class Viewing(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.proj, self.seen = nn.Conv2d(3, 5, 4, 4), []
                self.proj.register_forward_hook(lambda *_: self.seen.append(1))

            def forward(self, x: Tensor) -> Tensor:
                return self.proj(x).view(len(x), 5, -1).mean(2)

        model, x, y = Viewing(), images(4, 3, 8, 8), torch.tensor([0, 3, 1, 4])
        truth = found_by(model, x, y)
        model.seen.clear()
        with untouched(model), InputGradient(Engine(dtype=dtype, fold=True).bind(model)) as engine:
            assert "forward" in vars(model.proj)
            found = engine(x, y)
        assert "forward" not in vars(model.proj) and model.seen
        for ours, theirs in zip(found, truth, strict=True):
            assert (ours - theirs).norm() <= 1e-2 * theirs.norm()


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

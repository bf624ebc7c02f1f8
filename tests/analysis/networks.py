"""Networks of every kind that an analysis meets, in fp64, with some inputs and labels."""

from dataclasses import dataclass

import torch
from explicit import Mlp
from text_encoder import TextEncoder, token_batches
from tiny_models import SIZES, SMALL, images
from torch import Tensor, nn

from roli_fast import peft
from roli_fast.analysis import LinearHead
from roli_fast.data import Batch
from roli_fast.models import Model, create


@dataclass
class Case:
    """A model in train mode, the head's name, the backbone's tensors that train, and inputs."""

    model: nn.Module
    head: str
    names: list[str]
    x: Tensor
    y: Tensor

    @property
    def view(self) -> LinearHead:
        """The model with its head named."""
        return LinearHead.of(self.model, self.head)

    def batches(self, part: slice, size: int = 2) -> list[Batch]:
        x, y = self.x[part], self.y[part]
        ids = torch.arange(len(self.y))[part]
        parts = zip(x.split(size), y.split(size), ids.split(size), strict=True)
        return [Batch(*rows) for rows in parts]


class TorchEncoder(nn.Module):
    """torch's own encoder layer, with its fast path in eval mode, on tokens int64 (B, L)."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.embed = nn.Embedding(11, 8)
            layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
            self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
            self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(x))[:, 0])


class Cube(torch.autograd.Function):
    """x^3 without a forward mode, and without a rule for vmap."""

    @staticmethod
    def forward(context: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(context: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        (x,) = context.saved_tensors
        return 3 * x**2 * grad


class Cubed(Mlp):
    """The small network with an operation that has only a backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(Cube.apply(self.body(x)))


def case(kind: str) -> Case:
    """`kind` is "mlp", "mlp without bias", "text", "torch encoder", "lora", or a timm network."""
    if kind.startswith("mlp"):
        model: nn.Module = Mlp(bias=kind == "mlp")
        x = images(6, 5, seed=4).double() * 4 - 2
        return _case(model, "head", x, 3)
    if kind in ("text", "torch encoder"):
        model = TextEncoder() if kind == "text" else TorchEncoder()
        return _case(model, "head", torch.cat([batch.x for batch in token_batches(6)]), 3)
    name = "vit_tiny_patch16_224" if kind == "lora" else kind
    options = SMALL[name] | ({"depth": 1} if name.startswith("vit") else {})
    model = create(Model(name, options=options), num_classes=4)
    size = SIZES[name]
    if kind == "lora":
        names = peft.apply(model, peft.LoRA(rank=2, alpha=6.0))
        for index, parameter in enumerate(model.parameters()):  # B is zero, and A then has no part
            if parameter.requires_grad:
                parameter.data = images(*parameter.shape, seed=index) - 0.5
        found = _case(model, model.head_name, images(6, 3, size, size).double(), 4)
        found.names = [name for name in names if "lora" in name]
        return found
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.copy_(0.2 * images(*module.running_mean.shape) - 0.1)
            module.running_var.copy_(0.5 * images(*module.running_var.shape, seed=1) + 0.1)
    return _case(model, model.head_name, images(6, 3, size, size).double(), 4)


def _case(model: nn.Module, head: str, x: Tensor, classes: int) -> Case:
    names = [n for n, _ in model.named_parameters() if not n.startswith(f"{head}.")]
    return Case(model.double().train(), head, names, x, torch.arange(6) % classes)


KINDS = ("mlp", "mlp without bias", "text", "torch encoder", "lora", *SMALL)

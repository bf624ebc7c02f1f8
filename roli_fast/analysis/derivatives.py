"""Gradients and Jacobian products of a network's features and logits, with respect to its weights.

The only place beside the engine and the trainer's update where derivatives are taken. Products with
a tangent are `torch.func.jvp`'s; gradients are `torch.autograd.grad`'s and not `torch.func.vjp`'s,
which takes no `autograd.Function` of the old form and hides the graph that `mended` reads.
"""

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.backends import mha
from torch.func import functional_call, jvp
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from roli_fast.analysis.view import LinearHead, eval_mode
from roli_fast.engine import Mergeable, MergeRequest
from roli_fast.engine.batch_norm import ambiguous_norms, mended
from roli_fast.errors import ArgumentError, describe

Tangent = Mapping[str, Tensor]
"""Parameter name -> how it moves, shaped as the parameter; a name that is absent stays."""


class Pulled(NamedTuple):
    """What one gradient pass over a batch gives.

    Args:
        features: phi(x), (B, D).
        weights: what the logits were weighted with, (B, C).
        gradient: d(sum of weights * logits) / d(parameter), by name.
    """

    features: Tensor
    weights: Tensor
    gradient: dict[str, Tensor]


class Network:
    """phi and f of a model at fixed weights, and their derivatives along its backbone's tensors.

    Use it through `network`, which holds the model in the state that this needs.

    Args:
        head: the model and its head.
        names: the backbone's tensors that move.
    """

    def __init__(self, head: LinearHead, names: Sequence[str]) -> None:
        self.head = head
        self.own = dict(head.model.named_parameters())
        self.parameters = {name: self.own[name].detach() for name in names}
        self._captured = _Captured(head)
        prefix = f"{head.name}." if head.name else ""
        self.head_names = [prefix + name for name, _ in head.layer.named_parameters()]

    def __call__(self, x: Tensor, values: Tangent | None = None) -> tuple[Tensor, Tensor]:
        """(phi (B, D), logits (B, C)) with `values` in place of the parameters of those names; x is
        brought to the model's device and, if it is numbers, to its dtype."""
        named = {f"model.{name}": value for name, value in (values or {}).items()}
        like = self.head.layer.weight
        x = x.to(like.device, like.dtype if x.is_floating_point() else x.dtype)
        with _differentiable():
            return functional_call(self._captured, named, (x,))

    def moved(self, x: Tensor, tangent: Tangent) -> tuple[Tensor, Tensor]:
        """(phi, logits) at theta + tangent, the head's weights too where it names them."""
        with torch.no_grad():
            return self(x, {name: self.own[name] + t for name, t in tangent.items()})

    def head_part(self, features: Tensor, tangent: Tangent) -> Tensor:
        """dV phi + db, (B, C)."""
        part = features.new_zeros(len(features), self.head.classes)
        for name in self.head_names:
            if name in tangent:
                value = tangent[name].to(features)
                part = part + (value if value.ndim == 1 else features @ value.t())
        return part

    def check(self, tangent: Tangent) -> None:
        """Raise unless `tangent` is one of the model's own tensors, in their shapes."""
        for name, value in tangent.items():
            if name not in self.own or self.own[name].shape != value.shape:
                expected = "a parameter's name and shape, as `first_update` gives them"
                got = f"'{name}' of shape {tuple(value.shape)}"
                raise ArgumentError(describe("tangent", expected, got))

    def pull(self, x: Tensor, weigh: Callable[[Tensor], Tensor]) -> Pulled:
        """One forward and one backward: sum over the batch of J(x)^T V^T weights.

        Args:
            x: inputs (B, ...).
            weigh: logits (B, C) -> weights (B, C); no gradient goes through it.
        """
        leaves = {name: p.detach().requires_grad_() for name, p in self.parameters.items()}
        with torch.enable_grad():
            features, logits = self(x, leaves)
            weights = weigh(logits.detach())
        gradient = _gradient(mended(logits), leaves, weights)
        return Pulled(features.detach(), weights, gradient)

    def rows(self, x: Tensor, weights: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Rows of the Jacobian of one input's logits: weights (K, C) -> {name: (K, *shape)}."""
        leaves = {name: self.parameters[name].detach().requires_grad_() for name in names}
        with torch.enable_grad():
            _, logits = self(x, leaves)
        if not ambiguous_norms(logits):
            try:
                return _gradient(logits, leaves, weights[:, None], is_grads_batched=True)
            except RuntimeError as error:  # an autograd.Function, say, without a rule for vmap
                if not any(word in str(error).lower() for word in ("vmap", "batching rule")):
                    raise
        mended(logits)
        found = [_gradient(logits, leaves, row[None]) for row in weights]
        return {name: torch.stack([row[name] for row in found]) for name in leaves}

    def push(self, x: Tensor, tangent: Tangent) -> tuple[Tensor, Tensor]:
        """(phi (B, D), d phi = J(x) tangent (B, D)), by forward mode: about two forwards."""
        moving = {n: t.to(self.parameters[n]) for n, t in tangent.items() if n in self.parameters}
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of scripts that torch loads once
            if not any(bool(t.any()) for t in moving.values()):
                features, _ = self(x)
                return features, torch.zeros_like(features)
            start = {name: self.parameters[name] for name in moving}
            found = jvp(lambda values: self(x, values)[0], (start,), (moving,))
            return found[0], found[1]


def _gradient(
    logits: Tensor, leaves: dict[str, Tensor], weights: Tensor, *, is_grads_batched: bool = False
) -> dict[str, Tensor]:
    """d(sum of weights * logits) / d leaf, by name; batched, a row for each of the weights."""
    if not leaves or not logits.requires_grad:
        lead = weights.shape[:1] if is_grads_batched else ()
        return {name: leaf.new_zeros(*lead, *leaf.shape) for name, leaf in leaves.items()}
    found = torch.autograd.grad(
        logits,
        list(leaves.values()),
        weights,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
        is_grads_batched=is_grads_batched,
    )
    return dict(zip(leaves, found, strict=True))


@contextlib.contextmanager
def network(
    head: LinearHead, names: Sequence[str] | None = None, dtype: torch.dtype | None = None
) -> Iterator[Network]:
    """Hold a model in the state in which its derivatives are taken; given back exactly as found.

    Eval mode: no dropout, no stochastic depth, BN by its running statistics. No parameter requires
    grad, so that an attack in between costs what it does elsewhere.

    Args:
        head: the model and its head.
        names: see `moving_names`.
        dtype: of a copy that is taken in place of the model; None is the model itself.
    """
    if dtype not in (None, head.layer.weight.dtype):
        head = LinearHead.of(copy.deepcopy(head.model).to(dtype), head.name)
    model = head.model
    chosen = moving_names(head, names)
    trained = [p for p in model.parameters() if p.requires_grad]
    with eval_mode(model):
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            yield Network(head, chosen)
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)


@contextlib.contextmanager
def _differentiable() -> Iterator[None]:
    """Attention, of timm and of torch's own encoder layers, as operations with a forward mode."""
    fast = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        mha.set_fastpath_enabled(fast)


def moving_names(head: LinearHead, names: Sequence[str] | None = None) -> list[str]:
    """The backbone's tensors that move, in the model's order.

    Args:
        head: the model and its head.
        names: what trains, `peft.apply`'s list say; the head's own are left out. None: what
            requires grad, or every tensor where the whole model is frozen.

    Raises:
        ArgumentError: names that the model does not have.
    """
    if names is not None:
        return list(head.backbone(names))
    trains = [name for name, p in head.model.named_parameters() if p.requires_grad]
    return list(head.backbone(trains or None))


class _Captured(nn.Module):
    """The model as input -> (phi, logits), with low-rank layers computed in one matrix.

    Their own operation has no forward mode and cannot be batched; W + scale * B A has both.
    """

    def __init__(self, head: LinearHead) -> None:
        super().__init__()
        self.model = head.model
        self._head = head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        filled: list[Mergeable] = []
        try:
            for module in self.model.modules():
                request = module.merge_request() if isinstance(module, Mergeable) else None
                if request is not None:
                    assert isinstance(module, Mergeable)
                    filled.append(module)
                    module.merged = _merged(request)
            return self._head.features_and_logits(x)
        finally:
            for module in filled:
                module.merged = None


def _merged(request: MergeRequest) -> Tensor:
    """weight + scale * B_i A_i on the rows of each range, by operations that have derivatives."""
    weight, a, b, scale, rows = request
    rank, done = b.shape[1], 0
    for place, (start, stop) in enumerate(rows or ((0, len(weight)),)):
        update = b[done : done + stop - start] @ a[place * rank : (place + 1) * rank]
        done += stop - start
        padded = functional.pad(update, (0, 0, start, len(request.weight) - stop))
        weight = weight + scale * padded.to(weight.dtype)
    return weight

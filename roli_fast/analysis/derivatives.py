"""Gradients and Jacobian products of a network's features and logits, with respect to its weights.

The only place beside the engine and the trainer's update where derivatives are taken. Products with
a tangent are `torch.func.jvp`'s; gradients are `torch.autograd.grad`'s and not `torch.func.vjp`'s,
which takes no `autograd.Function` of the old form and hides the graph that `mended` reads.
"""

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
        own = dict(head.model.named_parameters())
        self.parameters = {name: own[name].detach() for name in names}
        self.notes: list[str] = []
        self._can_batch = True
        self._captured = _Captured(head)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tensors that move."""
        return tuple(self.parameters)

    def cast(self, x: Tensor) -> Tensor:
        """Inputs (B, ...) on the model's device and, if they are numbers, in its dtype."""
        like = self.head.layer.weight
        return x.to(like.device, like.dtype if x.is_floating_point() else x.dtype)

    def __call__(self, x: Tensor, values: Tangent | None = None) -> tuple[Tensor, Tensor]:
        """(phi (B, D), logits (B, C)) with `values` in place of the parameters of those names."""
        named = {f"model.{name}": value for name, value in (values or {}).items()}
        with _differentiable():
            return functional_call(self._captured, named, (self.cast(x),))

    def moved(self, x: Tensor, tangent: Tangent, step: float = 1.0) -> tuple[Tensor, Tensor]:
        """(phi, logits) at theta + step * tangent, the head's weights too where it names them."""
        own = dict(self.head.model.named_parameters())
        with torch.no_grad():
            return self(x, {name: own[name] + step * t for name, t in tangent.items()})

    def head_names(self) -> list[str]:
        """Names of V and, where there is one, of b."""
        prefix = f"{self.head.name}." if self.head.name else ""
        return [prefix + name for name, _ in self.head.layer.named_parameters()]

    def of_head(self, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
        """How the head moves, by name; a head without bias takes the first alone."""
        names = self.head_names()
        return dict(zip(names, (weight, bias)[: len(names)], strict=True))

    def head_part(self, features: Tensor, tangent: Tangent) -> Tensor:
        """dV phi + db, (B, C)."""
        part = features.new_zeros(len(features), self.head.classes)
        for name, value in tangent.items():
            if name in self.head_names():
                value = value.to(features)
                part = part + (value if value.ndim == 1 else features @ value.t())
        return part

    def check(self, tangent: Tangent) -> None:
        """Raise unless `tangent` is one of the model's own tensors, in their shapes."""
        own = dict(self.head.model.named_parameters())
        for name, value in tangent.items():
            if name not in own or own[name].shape != value.shape:
                expected = f"shape {tuple(own[name].shape)}" if name in own else "a parameter name"
                got = f"'{name}' of shape {tuple(value.shape)}"
                fix = "A tangent has a parameter's name and shape: `first_update` makes one."
                raise ArgumentError(describe("tangent", expected, got, fix))

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
        gradient = self._gradient(logits, leaves, weights, batched=False)
        return Pulled(features.detach(), weights, gradient)

    def rows(self, x: Tensor, weights: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Rows of the Jacobian of one input's logits: weights (K, C) -> {name: (K, *shape)}."""
        leaves = {name: self.parameters[name].detach().requires_grad_() for name in names}
        with torch.enable_grad():
            _, logits = self(x, leaves)
        return self._gradient(logits, leaves, weights[:, None], batched=True)

    def push(self, x: Tensor, tangent: Tangent) -> tuple[Tensor, Tensor]:
        """(phi (B, D), d phi = J(x) tangent (B, D)), by forward mode: about two forwards.

        Where an operation of the model has no forward mode, it is a central difference of two
        forwards, and `notes` says so.
        """
        moving = {n: t.to(self.parameters[n]) for n, t in tangent.items() if n in self.parameters}
        with torch.no_grad():
            if not any(bool(t.any()) for t in moving.values()):
                features, _ = self(x)
                return features, torch.zeros_like(features)
            if not self.notes:
                start = {name: self.parameters[name] for name in moving}
                try:
                    with warnings.catch_warnings():  # torch's own, of scripts that it loads once
                        warnings.simplefilter("ignore", DeprecationWarning)
                        found = jvp(lambda values: self(x, values)[0], (start,), (moving,))
                    return found[0], found[1]
                except (NotImplementedError, RuntimeError) as error:
                    if not _lacks_forward_mode(error):
                        raise
                    reason = str(error).splitlines()[0]
                    self.notes.append(f"central differences in place of forward mode: {reason}")
            return self._difference(x, moving)

    def _difference(self, x: Tensor, tangent: Tangent) -> tuple[Tensor, Tensor]:
        """Steps of eps^(1/3) of the weights' size: rounding and the third derivative balance."""
        size = _norm(self.parameters[name] for name in tangent) or 1.0
        relative = torch.finfo(self.head.layer.weight.dtype).eps ** (1 / 3)
        step = relative * size / _norm(tangent.values())
        above, below = (self.moved(x, tangent, sign * step)[0] for sign in (1, -1))
        return self(x)[0], (above - below) / (2 * step)

    def _gradient(
        self, logits: Tensor, leaves: dict[str, Tensor], weights: Tensor, *, batched: bool
    ) -> dict[str, Tensor]:
        if not leaves or not logits.requires_grad:
            lead = weights.shape[:1] if batched else ()
            return {name: leaf.new_zeros(*lead, *leaf.shape) for name, leaf in leaves.items()}

        def take(weights: Tensor, **options: bool) -> dict[str, Tensor]:
            options |= {"allow_unused": True, "materialize_grads": True}
            found = torch.autograd.grad(logits, list(leaves.values()), weights, **options)
            return dict(zip(leaves, found, strict=True))

        if not batched:
            mended(logits)
            return take(weights)
        if self._can_batch and not ambiguous_norms(logits):
            try:
                return take(weights, is_grads_batched=True, retain_graph=True)
            except RuntimeError as error:  # an autograd.Function, say, without a rule for vmap
                if not any(word in str(error).lower() for word in ("vmap", "batching rule")):
                    raise
                self._can_batch = False
        mended(logits)
        rows = [take(row, retain_graph=True) for row in weights]
        return {name: torch.stack([row[name] for row in rows]) for name in leaves}


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
    trains = {name for name, p in head.model.named_parameters() if p.requires_grad}
    ours = list(head.backbone())
    return [name for name in ours if name in trains] if trains else ours


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


def _lacks_forward_mode(error: Exception) -> bool:
    text = str(error).lower()
    return "forward ad" in text or "jvp" in text or "forward mode" in text


def _norm(tensors: Iterable[Tensor]) -> float:
    return sum(float(t.double().square().sum()) for t in tensors) ** 0.5

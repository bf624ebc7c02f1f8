"""Batch normalisation folded into convolutions for as long as weights do not change.

In eval mode BN is (y - mean) * s + beta with s = gamma / sqrt(var + eps), so a layer whose output
it alone reads can do it: w' = w * s, b' = (b - mean) * s + beta. That holds whatever a convolution
pads with, since it concerns the output. It is exact in real arithmetic, and changes logits by what
fp32 rounds.

Of a normalisation in front of the network, (x - mean) / std, the division goes into the first
convolution, w' = w / std. The subtraction stays: a border of zeros is one only after it, images
about zero lose less in bf16 than those in [0, 1], and its backward does nothing.
"""

import contextlib
from types import MethodType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from roli_fast.engine.fold_plan import Link, folded_forward, forget_plan, plan_of, refuse
from roli_fast.engine.patches import by_patches
from roli_fast.threat import values_are_known

_buffers: "WeakKeyDictionary[nn.Module, dict[str, nn.Parameter]]" = WeakKeyDictionary()
"""Folded weights, kept as long as the module and filled anew for each engine, as merged ones."""

_ABSENT = object()

_TF32 = 2.0**-11
"""Rounding of fp32 convolutions on a GPU, by default."""


class Folding:
    """Folds a model's BN layers and input scaling, and takes both out again."""

    def __init__(self) -> None:
        self.reason: str | None = None
        """Why `fill` folded no weights, where there might be some to fold."""
        self._undo: list[tuple[dict[str, Any], str, Any]] = []
        self._compared: set[bool] | None = None

    def fill(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        """Fold whatever can be, in a model in eval mode; what an outer engine folded stays so.

        Second tensors take the place of the layers' weights until `clear`, `forward` of a folded BN
        does no more than its activation, and patches are embedded by a matrix product.

        Args:
            model: images -> logits. Its structure is looked at once, its weights each time.
            dtype: of the passes, where it is not the weights'. In fp16 no weights are folded: they
                may come out below what fp16 knows.
        """
        plan = plan_of(model)
        links, self.reason = plan.links, plan.reason
        if links and _is_half(model, dtype):
            links, self.reason = [], "folded weights may be too small for fp16"
        folds = [fold for fold in (_fold(model, link) for link in links) if fold is not None]
        self._compared = set() if folds else None
        with torch.inference_mode(False), torch.no_grad():
            maps = _affine_maps(folds)
            weights = [_weights(fold, maps.get(fold.norm)) for fold in folds]
        for fold, tensors in zip(folds, weights, strict=True):
            for name, tensor in tensors.items():
                self._put(fold.layer._parameters, name, tensor)
            if fold.norm is not None:
                forward = MethodType(folded_forward(fold.norm), fold.norm)
                self._put(vars(fold.norm), "forward", forward)
            if fold.scaling is not None:
                self._put(vars(fold.scaling), "folded", True)
        for name in plan.patches:
            layer = model.get_submodule(name)
            if "forward" not in vars(layer):
                self._put(vars(layer), "forward", MethodType(by_patches, layer))

    def check(self, model: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> bool:
        """Whether the passes of images `x` (B, ...) are folded as before.

        The first image is run folded and plain, once with gradients and once without: what a
        forward chooses by (a dict, a global, the gradient mode) a plan cannot see. Where the logits
        differ the plan is made anew, and where they still do nothing is folded.
        """
        mode, wrong = torch.is_grad_enabled(), dtype is not None and x.dtype != torch.float32
        if self._compared is None or mode in self._compared or len(x) == 0 or wrong:
            return True  # `EnginePasses` tells of a wrong dtype
        if values_are_known():  # it would wait for the device, each update of a training
            return True
        x = x[:1].detach()
        same = self._agrees(model, x, dtype)
        if not same:
            for again in (forget_plan, refuse):
                again(model)
                self.clear()
                self.fill(model, dtype)
                if self._compared is None or self._agrees(model, x, dtype):
                    break
        if self._compared is not None:
            self._compared.add(mode)
        return same

    def _agrees(self, model: nn.Module, x: Tensor, dtype: torch.dtype | None) -> bool:
        """In the precision of the passes, which merged low-rank layers are in already."""
        kind, devices = x.device.type, [x.device] if x.is_cuda else []
        short = torch.autocast(kind, dtype) if dtype else contextlib.nullcontext()
        with torch.random.fork_rng(devices), short:
            folded = model(x.clone())
        put = [(owner, name, owner[name]) for owner, name, _ in self._undo]
        undo = list(self._undo)
        self.clear()
        try:
            with torch.random.fork_rng(devices), short:
                plain = model(x.clone())
        finally:
            for owner, name, value in put:
                owner[name] = value
            self._undo = undo
        if not isinstance(plain, Tensor) or not isinstance(folded, Tensor):
            return True  # which the caller refuses
        if dtype is None and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        dtype = dtype or plain.dtype
        rounding = _TF32 if x.is_cuda and dtype == torch.float32 else torch.finfo(dtype).eps
        apart = torch.linalg.vector_norm(folded.double() - plain.double())
        return not bool(apart > rounding**0.5 * torch.linalg.vector_norm(plain.double()))

    def _put(self, owner: dict[str, Any], name: str, value: Any) -> None:
        self._undo.append((owner, name, owner.get(name, _ABSENT)))
        owner[name] = value

    def clear(self) -> None:
        """Put back what `fill` replaced."""
        while self._undo:
            owner, name, value = self._undo.pop()
            if value is _ABSENT:
                del owner[name]
            else:
                owner[name] = value


def forget_folded(model: nn.Module) -> None:
    """Free the buffers of a model's modules; the next attack makes new ones."""
    for module in model.modules():
        _buffers.pop(module, None)


class _Fold(NamedTuple):
    """A layer, the modules that leave their work to it, and by what one of them would divide."""

    layer: Any
    norm: Any
    scaling: Any
    divisor: Tensor | None


def _fold(model: nn.Module, link: Link) -> _Fold | None:
    """What of a link can be folded now."""
    layer: Any = model.get_submodule(link.layer)
    norm: Any = model.get_submodule(link.norm) if link.norm else None
    scaling: Any = model.get_submodule(link.scaling) if link.scaling else None
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if norm is not None and not _is_fixed(norm, outputs):
        norm = None
    divisor = None if scaling is None or scaling.folded else scaling.fold_request()
    if divisor is None or not _reads_channels(layer, divisor.numel()):
        scaling = divisor = None
    if not _has_own_weight(layer) or (norm is None and scaling is None):
        return None
    return _Fold(layer, norm, scaling, divisor)


def _affine_maps(folds: list[_Fold]) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """Scale and shift of every BN, in fp64: all that have one eps at once, as each is small."""
    groups: dict[Any, list[_Fold]] = {}
    for fold in folds:
        if fold.norm is not None:
            groups.setdefault((fold.norm.eps, fold.norm.running_var.device), []).append(fold)
    maps = {}
    for (eps, _), some in groups.items():
        norms = [fold.norm for fold in some]
        scale = (_joined([norm.running_var for norm in norms]) + eps).rsqrt_()
        scale *= _joined([_or(norm.weight, norm.running_var, 1.0) for norm in norms])
        shift = -_joined([norm.running_mean for norm in norms])
        if any(fold.layer.bias is not None for fold in some):
            shift += _joined([_or(f.layer.bias, f.norm.running_var, 0.0) for f in some])
        shift *= scale
        shift += _joined([_or(norm.bias, norm.running_var, 0.0) for norm in norms])
        sizes = [norm.running_var.numel() for norm in norms]
        parts = zip(norms, scale.split(sizes), shift.split(sizes), strict=True)
        maps.update({norm: (scale, shift) for norm, scale, shift in parts})
    return maps


def _joined(vectors: list[Tensor]) -> Tensor:
    return torch.cat(vectors).double()


def _or(tensor: Tensor | None, like: Tensor, value: float) -> Tensor:
    return torch.full_like(like, value) if tensor is None else tensor


def _weights(fold: _Fold, affine: tuple[Tensor, Tensor] | None) -> dict[str, nn.Parameter]:
    """The layer's second tensors, filled. A weight is multiplied by a rounded fp64 factor, as in
    fp32 BN, and not in fp64: of millions of numbers that would take a tenth of a pass."""
    layer, weight = fold.layer, fold.layer.weight
    made, factors = {}, []
    if affine is not None:
        scale, shift = affine
        made["bias"] = _second(layer, "bias", weight.new_empty(len(shift)))
        made["bias"].copy_(shift)
        factors.append(_over_outputs(layer, scale))
    if fold.divisor is not None:
        factors.append(1.0 / fold.divisor.double().view(1, -1, 1, 1))
    factor = factors[0] if len(factors) == 1 else factors[0] * factors[1]
    factor = factor.to(torch.promote_types(weight.dtype, torch.float32))
    made["weight"] = _second(layer, "weight", weight)
    torch.mul(weight, factor, out=made["weight"])
    return made


def _is_fixed(norm: Any, channels: int) -> bool:
    """Whether this BN is one affine map, for so many channels."""
    mean, var = norm.running_mean, norm.running_var
    known = mean is not None and var is not None and mean.numel() == channels
    return known and not norm.training and "forward" not in vars(norm)


def _reads_channels(layer: Any, channels: int) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.in_channels == channels


def _has_own_weight(layer: Any) -> bool:
    """Whether its weight is a plain parameter, and not our second one."""
    weight = layer._parameters.get("weight")
    return (
        type(weight) is nn.Parameter
        and weight.dtype in (torch.float32, torch.float64, torch.bfloat16)
        and weight is not _buffers.get(layer, {}).get("weight")
    )


def _over_outputs(layer: Any, scale: Tensor) -> Tensor:
    """Numbers of each output channel, in the axes of the layer's weight."""
    ones = [1] * (layer.weight.ndim - 2)
    if not isinstance(layer, (nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return scale.view(-1, 1, *ones)
    groups, inputs = layer.groups, layer.in_channels  # a weight is (inputs, outputs of a group, ..)
    rows = scale.view(groups, 1, -1).expand(-1, inputs // groups, -1)
    return rows.reshape(inputs, -1, *ones)


def _second(layer: nn.Module, name: str, like: Tensor) -> nn.Parameter:
    """The layer's second tensor from the last time, if it still fits."""
    held = _buffers.setdefault(layer, {})
    found = held.get(name)
    fits = found is not None and (found.shape, found.dtype, found.device, found.stride()) == (
        like.shape,
        like.dtype,
        like.device,
        like.stride(),
    )
    if found is None or not fits:
        found = held[name] = nn.Parameter(torch.empty_like(like), requires_grad=False)
    return found


def _is_half(model: nn.Module, dtype: torch.dtype | None) -> bool:
    """Whether passes are in fp16, by `dtype` or by the caller's autocast."""
    kind = next((p.device.type for p in model.parameters()), "cpu")
    if dtype is None and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    return dtype == torch.float16

"""Signs that an attack's answer may mean less than it seems: notes in a result, logged once.

Those that AutoAttack's code gives (a model that draws, gradients of zero, a model in train mode,
outputs that are probabilities), and those of masked gradients (Athalye et al. 2018,
arXiv:1802.00420, section 3.1): the loss does not rise along its gradient, a search without
gradients fools what those with gradients did not, or PGD finds far less than stronger searches.
"""

import logging
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from roli_fast.attacks.base import Attack, Ball
from roli_fast.attacks.objective import Goal, is_right
from roli_fast.attacks.passes import Passes
from roli_fast.attacks.pgd import PGD
from roli_fast.attacks.square import Square
from roli_fast.engine import Cost, InputGradient, KeptForward, bound, in_train_mode, plain
from roli_fast.engine.input_gradient import Model
from roli_fast.errors import ArgumentError
from roli_fast.losses import at_least_float32, margin

logger = logging.getLogger("roli_fast.attacks")

LOOKED_AT = 64
"""Images of a batch that are looked at: the signs are a model's, not an image's."""
FLAT = 0.25
"""Part of the images whose loss may fail to rise along the gradient before it is called flat."""


ROBUST_GAP = 0.07
"""Accuracy under PGD less that under APGD or Square too, above which gradients count as masked.
Fine-tuned from robust backbones the two are about 4 points apart; after one-step training from a
standard one, which masks, 10 to 20 (EfficientNet-Lite0, Caltech-101, PGD-10 beside APGD)."""


class Sign(NamedTuple):
    """One warning: its kind, by which it is logged once, and its words."""

    kind: str
    text: str


MASKED = "a sign of masked gradients, the true robustness may be lower"
TRAIN = Sign(
    "train-mode",
    "the model was in train mode; it is attacked in eval mode, and given back as it was",
)
RANDOM = Sign(
    "random",
    "the logits of the same images differ between two passes: the model draws. "
    "AutoAttack(version='rand') averages over its draws (EOT); this attack does not",
)
NOT_RANDOM = Sign(
    "not-random",
    "the model does not draw, and version rand is weaker than standard on such a model",
)
PROBABILITIES = Sign(
    "probabilities",
    "the model's outputs look like probabilities: attack its logits, before softmax",
)
NO_GRADIENT = Sign(
    "no-gradient", "the model gives no gradient: only searches without gradients can attack it"
)


class FirstLook(NamedTuple):
    """A first look at a model: which images are right, bool (B,), signs, and what it cost."""

    right: Tensor
    signs: list[Sign]
    cost: Cost


def first_look(model: Model, x: Tensor, y: Tensor, ball: Ball, *, draws: bool = False) -> FirstLook:
    """What a model shows before an attack.

    It costs 1 forward on all images, and 3 forwards and 2 input-backwards on up to 64 of those that
    are right. A bound model is looked at in its own precision.

    Args:
        model: images (B, ...) -> logits (B, C).
        x: images (B, ...) inside the bounds.
        y: labels (B,).
        ball: where the attack will search.
        draws: the attack is meant for models that draw, as AutoAttack's version rand.

    Raises:
        ArgumentError: labels out of range, logits that are NaN, and the like.
    """
    own = bound(model).model
    trained = in_train_mode(own)
    with InputGradient(plain(model)) as engine, torch.no_grad():
        # one of another library may keep its own mode
        signs = [TRAIN] if trained and not in_train_mode(own) else []
        right = is_right(Passes(engine).clean(x, y), y)
        signs += before_attack(engine, x, y, right, ball, draws=draws)
        return FirstLook(right, signs, engine.cost)


def before_attack(  # noqa: PLR0913 - what an attack is about to work on
    engine: InputGradient, x: Tensor, y: Tensor, right: Tensor, ball: Ball, *, draws: bool = False
) -> list[Sign]:
    """The part of `first_look` that needs passes, where it is known which images are `right`, bool
    (B,): only these are looked at, by `engine`, an entered `InputGradient` of the model. The other
    arguments are those of `first_look`."""
    rows = right.nonzero()[:, 0][:LOOKED_AT]
    rows = rows[engine.batches(len(rows))[0]]
    if len(rows) == 0:
        return []
    x, y = x[rows], y[rows]
    if isinstance(ball.eps, Tensor):
        ball = ball._replace(eps=ball.eps[rows])
    kept = engine.keep(x, y)
    before, logits = engine.evaluate(x, y, margin)
    signs = [*_drawing(kept.logits, logits, draws), *_probabilities(logits)]
    try:
        grad, zero = _gradients(kept, y)
    except ArgumentError:  # no path to x: a quantised model, which a search without gradients takes
        return [*signs, NO_GRADIENT]
    return [*signs, *zero, *_flat(engine, x, y, ball, grad, before)]


def black_box(parts: Sequence[Attack], fooled: Sequence[int]) -> list[Sign]:
    """A search without gradients that fooled what those with gradients before it had not.

    Args:
        parts: searches, each on what those before left right.
        fooled: how many images each of them fooled.
    """
    white = 0
    for part, count in zip(parts, fooled, strict=True):
        if not isinstance(part, Square):
            white += 1
        elif white and count:
            found = f"fooled {count} that {white} searches with gradients had not"
            text = f"{part.label}, which sees no gradient, {found}: {MASKED}"
            return [Sign("black-box", text)]
    return []


def pgd_gap(
    parts: Sequence[Attack], fooled: Sequence[int], attacked: int, images: int
) -> list[Sign]:
    """PGD leaves far more images right than stronger searches that follow it.

    Args:
        parts: searches, each on what those before left right.
        fooled: how many images each of them fooled.
        attacked: how many images the first one got.
        images: of which all accuracies are shares.
    """
    left = [attacked - count for count in accumulate(fooled)]
    pgd = [place for place, part in enumerate(parts) if isinstance(part, PGD) and part.steps >= 10]
    if not pgd or left[pgd[-1]] - left[-1] <= ROBUST_GAP * images:
        return []
    before, after = left[pgd[-1]] / images, left[-1] / images
    text = (
        f"the gradients are masked: {before:.1%} stay right under {parts[pgd[-1]].label} and "
        f"{after:.1%} under what follows it, {100 * (before - after):.0f} points apart, where "
        "robust models show about 4. Trust the latter"
    )
    return [Sign("pgd-gap", text)]


_logged: "WeakKeyDictionary[object, set[str]]" = WeakKeyDictionary()


def log_once(model: Model, signs: Iterable[Sign]) -> tuple[str, ...]:
    """Log each kind of sign once for this model; returns the words of all of them."""
    signs = tuple(signs)
    try:
        known = _logged.setdefault(bound(model).model, set())
    except TypeError:  # a callable that cannot be held weakly: logged each time
        known = set()
    for sign in signs:
        if sign.kind not in known:
            known.add(sign.kind)
            logger.warning("%s", sign.text)
    return tuple(sign.text for sign in signs)


def _drawing(first: Tensor, second: Tensor, draws: bool) -> list[Sign]:
    """Two passes over the same images that differ by more than rounding, or do not."""
    rounding = max(1e-4, 4 * torch.finfo(first.dtype).eps)
    first, second = at_least_float32(first), at_least_float32(second)
    apart = torch.linalg.vector_norm(first - second, dim=1)
    share = apart / torch.linalg.vector_norm(first, dim=1).clamp(min=1e-30)
    random = bool((share > rounding).any())
    if random == draws:
        return []
    return [RANDOM if random else NOT_RANDOM]


def _probabilities(logits: Tensor) -> list[Sign]:
    total = at_least_float32(logits).sum(1)
    are = logits.shape[1] > 1 and bool((logits >= 0).all() and ((total - 1).abs() < 1e-3).all())
    return [PROBABILITIES] if are else []


def _gradients(kept: KeptForward, y: Tensor) -> tuple[Tensor, list[Sign]]:
    """The cross-entropy's gradient, and for how many images that of a loss is zero."""
    signs, grad = [], Tensor()
    for loss in ("dlr", "ce"):
        grad, _ = kept.gradient(Goal(loss, y), last=loss == "ce")
        zero = int((grad == 0).flatten(1).all(1).sum())
        if zero:
            where = f"the gradient of {loss} is zero for {zero} of {len(y)} images"
            signs.append(Sign(f"zero-{loss}", f"{where}: searches along it stand still there"))
    return grad, signs


def _flat(
    engine: InputGradient, x: Tensor, y: Tensor, ball: Ball, grad: Tensor, before: Tensor
) -> list[Sign]:
    """A step of eps / 4 along the gradient, which raises the margin wherever it tells anything."""
    radii = dict(eps=ball.eps, step_size=ball.eps / 4)
    step = ball.norm.step_(x.clone(), grad, x, **radii, bounds=ball.bounds)
    moved = (step != x).flatten(1).any(1)
    after, _ = engine.evaluate(step, y, margin)
    stuck, count = int((moved & (after <= before)).sum()), int(moved.sum())
    if stuck <= FLAT * count:
        return []
    where = f"the margin does not rise along the gradient for {stuck} of {count} images"
    return [Sign("flat", f"{where}: {MASKED}")]

"""DeepFool and the attack of Carlini and Wagner: they look for the closest adversarial image."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from roli_fast.attacks.base import ATTACKS, AttackInputs, Ball, BallAttack, check_steps
from roli_fast.attacks.fab import FABResult, NearestPlane
from roli_fast.attacks.objective import Goal, check_target, is_right
from roli_fast.attacks.passes import Passes, column
from roli_fast.engine import InputGradient
from roli_fast.errors import ArgumentError, describe
from roli_fast.losses import margin
from roli_fast.norms import NORMS
from roli_fast.ops.rounding import compute_dtype
from roli_fast.threat import check_positive


@dataclass(frozen=True)
class Closest(BallAttack):
    """Base of both: what was met is pulled into the ball, and a last forward tells who is fooled.

    `distance` of the result is that of the closest adversarial image met, wherever it is: 0 where x
    is classified wrong to begin with, inf where none was met.
    """

    def meet(
        self, gradient: InputGradient, inputs: AttackInputs, ball: Ball, right: Tensor
    ) -> "Met":
        """The closest adversarial images of the samples in `right` (B,); of those without one the
        last that was looked at. The others may be looked at, too."""
        raise NotImplementedError

    def search(self, inputs: AttackInputs) -> FABResult:
        ball, inputs = self.ball(inputs)
        x, y = inputs.x, inputs.y
        with inputs.gradient(margin) as gradient:
            clean, goal = Passes(gradient).clean(x, y), Goal("margin", y, inputs.target)
            if inputs.target is not None:
                check_target(inputs.target, y, clean)
            right = ~goal.reached(clean)
            met = self.meet(gradient, inputs, ball, right)
            distance = torch.where(right, met.distance, 0.0)
            x_adv = torch.where(column(right, x), met.image, x)
            ball.norm.project_(x_adv, x, eps=ball.eps, bounds=ball.bounds)
            fooled = goal.reached(gradient.evaluate(x_adv, y)[1])
            return FABResult(x_adv, gradient.cost, fooled, ball.notes, distance)


class Met:
    """The closest adversarial image of each sample so far, and its distance, fp64 (B,)."""

    def __init__(self, x: Tensor) -> None:
        self.image = x.clone()
        self.distance = x.new_full((len(x),), torch.inf, dtype=torch.float64)

    def update(self, image: Tensor, distance: Tensor, fooled: Tensor) -> None:
        """Keep `image` where it fools from nearer; where none has fooled yet, whatever it is."""
        closer = fooled & (distance < self.distance)
        keep = closer | self.distance.isinf()
        self.image = torch.where(column(keep, image), image, self.image)
        self.distance = torch.where(closer, distance, self.distance)


@ATTACKS.register("deepfool")
@dataclass(frozen=True)
class DeepFool(Closest):
    """Goes to the nearest of the linearised boundaries, again and again, until the class changes.

    A step costs one forward and C - 1 backwards, over those that are still right; two more forwards
    begin and end it. Moosavi-Dezfooli et al., CVPR 2016, Algorithm 2, and section 3.3 for other
    norms.

    Args:
        steps: the most steps.
        overshoot: how far beyond a boundary a step goes, as a share of it.
    """

    steps: int = 50
    overshoot: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("overshoot", self.overshoot, zero=True)

    @property
    def label(self) -> str:
        """ "deepfool-50"."""
        return f"deepfool-{self.steps}"

    def meet(self, gradient: InputGradient, inputs: AttackInputs, ball: Ball, right: Tensor) -> Met:
        x, y, met = inputs.x, inputs.y, Met(inputs.x)
        point, left = x.clone(), right.nonzero()[:, 0]
        for step in range(self.steps + 1):
            stay = []
            for part in gradient.batches(len(left)):
                rows = left[part]
                kept = gradient.keep(point[rows], y[rows])
                fooled = ~is_right(kept.logits, y[rows])
                self._note(met, rows, point[rows], ball.norm.distance(point[rows], x[rows]), fooled)
                classes = kept.logits.shape[1]
                if step < self.steps and classes > 1 and not bool(fooled.all()):
                    plane = NearestPlane(ball.norm, classes - 1)
                    normal, value = plane(kept, y[rows])
                    moved = self._beyond(point[rows], normal, value, ball)
                    point[rows] = torch.where(column(fooled, moved), point[rows], moved)
                    stay.append(rows[~fooled])
            if not stay or len(left := torch.cat(stay)) == 0:
                break
        return met

    def _beyond(self, point: Tensor, normal: Tensor, value: Tensor, ball: Ball) -> Tensor:
        """The nearest point of the plane through `value` (B,) and a share further, in the box."""
        length = (1 + self.overshoot) * value.abs() / ball.norm.dual(normal).clamp(min=1e-30)
        # where a bound takes part of each step, shares of ever smaller ones would come to the
        # boundary and never over it; the authors' code adds ten times as much to each
        low, high = ball.bounds
        length = length.clamp(min=1e-5 * (high - low))
        # a step of this norm in a ball that holds it is the steepest way, bounds and all
        size = length.to(compute_dtype(point.dtype)).clamp(max=_widest(ball, point))
        moved, radii = point.clone(), {"eps": size, "step_size": size}
        return ball.norm.step_(moved, normal, point, **radii, bounds=ball.bounds)

    @staticmethod
    def _note(met: Met, rows: Tensor, image: Tensor, distance: Tensor, fooled: Tensor) -> None:
        own = Met(image)
        own.image, own.distance = met.image[rows], met.distance[rows]
        own.update(image, distance, fooled)
        met.image[rows], met.distance[rows] = own.image, own.distance


def _widest(ball: Ball, x: Tensor) -> float:
    """The largest distance in the box: a step beyond it leaves nothing to the bounds."""
    low, high = ball.bounds
    return (high - low) * ball.norm.largest(x.shape[1:].numel())


@dataclass(frozen=True)
class Confidence:
    """-max(z_y - max of the others, -kappa): what is gained until the goal's margin is kappa."""

    goal: Goal
    kappa: float

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        return self.goal(logits, y).clamp(max=self.kappa)

    def rows(self, part: slice) -> "Confidence":
        """That of these samples alone."""
        return replace(self, goal=self.goal.rows(part))


@ATTACKS.register("cw")
@dataclass(frozen=True)
class CW(Closest):
    """Minimises ||x' - x||_2^2 + c max(z_y - max of the others, -kappa) over tanh space by Adam.

    The distance that is minimised is l2 in every norm, in units of [0, 1] images. It costs steps *
    searches forwards and backwards and some forwards more. Carlini and Wagner, "Towards Evaluating
    the Robustness of Neural Networks", IEEE S&P 2017, section VI-A.

    Args:
        steps: of Adam, in each search.
        learning_rate: its rate.
        c: weight of the class's part; in the first search where there are several.
        kappa: margin that the wrong class shall have.
        searches: bisections of c, sample by sample, ten times as large where none was found.
    """

    steps: int = 50
    learning_rate: float = 0.01
    c: float = 1.0
    kappa: float = 0.0
    searches: int = 6

    options = ("eps", "target")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps("searches", self.searches)
        for name in ("learning_rate", "c"):
            check_positive(name, getattr(self, name))
        if self.kappa < 0:
            raise ArgumentError(describe("kappa", "a number >= 0", self.kappa))

    @property
    def label(self) -> str:
        """ "cw-50"; another number of searches than 6 follows."""
        return f"cw-{self.steps}" + (f"-s{self.searches}" if self.searches != 6 else "")

    def meet(self, gradient: InputGradient, inputs: AttackInputs, ball: Ball, right: Tensor) -> Met:
        x, met = inputs.x, Met(inputs.x)
        wide = compute_dtype(x.dtype)
        c = x.new_full((len(x),), self.c, dtype=wide)
        low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)
        for _ in range(self.searches):
            found = self._search(gradient, inputs, ball, c)
            met.update(found.image, ball.norm.distance(found.image, x), found.distance.isfinite())
            high = torch.where(found.distance.isfinite(), torch.minimum(high, c), high)
            low = torch.where(found.distance.isfinite(), low, torch.maximum(low, c))
            c = torch.where(high.isinf(), 10 * c, (low + high) / 2)
        return met

    def _search(self, gradient: InputGradient, inputs: AttackInputs, ball: Ball, c: Tensor) -> Met:
        """One search with the weights `c` (B,); the closest in l2."""
        x, y, (least, most) = inputs.x, inputs.y, ball.bounds
        width = most - least
        met, goal = Met(x), Goal("margin", y, inputs.target)
        wanted = Confidence(goal, self.kappa)
        share = (x.to(c.dtype) - least) / width
        start = (2 * share - 1).clamp(-1 + 1e-6, 1 - 1e-6)
        with torch.inference_mode(False):
            place = torch.atanh(start).clone().requires_grad_(True)
            adam = torch.optim.Adam([place], lr=self.learning_rate)
            for step in range(self.steps + 1):
                tanh = place.detach().tanh()
                image = (least + width * (tanh + 1) / 2).to(x.dtype)
                if step == self.steps:
                    grad, (_loss, logits) = None, gradient.evaluate(image, y, wanted)
                else:
                    grad, _loss, logits = gradient(image, y, wanted)
                met.update(image, NORMS["l2"].distance(image, x), goal.reached(logits))
                if grad is not None:
                    away = (tanh + 1) / 2 - share  # in units of [0, 1] images
                    slope = 2 * away - column(c, away) * grad.to(c.dtype) * width
                    place.grad = slope * (1 - tanh.square()) / 2
                    adam.step()
        return met

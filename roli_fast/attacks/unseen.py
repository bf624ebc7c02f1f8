"""Attacks that no ball of the pixels holds: fog, snow, Gabor noise, elastic moves, JPEG's
coefficients (Kang et al., "Testing Robustness Against Unforeseen Adversaries", 2019,
arXiv:1908.08016), and a few pixels (sparse PGD, Zhong et al., ICML 2024, arXiv:2405.05075).

All steps are taken in what is drawn over the image, by the gradient that the engine gives for the
pixels. They take images (B, C, H, W) of any size, and a sample's draws depend on the generator's
next number and its id alone.
"""

import io
import math
from dataclasses import dataclass, field, replace
from functools import cache
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional

from roli_fast.attacks.base import Attack, AttackInputs, AttackResult
from roli_fast.attacks.objective import Goal
from roli_fast.attacks.passes import Passes, column
from roli_fast.attacks.transfer import uniform
from roli_fast.engine import Cost
from roli_fast.errors import ArgumentError, describe
from roli_fast.ops.rounding import box_limits
from roli_fast.registry import Registry
from roli_fast.threat import Bounds, ThreatModel, check_bounds, check_images, check_positive

UNSEEN: Registry[type[Attack]] = Registry("unseen attack")

Scene = dict[str, Tensor]
"""What belongs to the drawing beside its parameters; the batch in front."""


@dataclass(frozen=True)
class Drawn(Attack):
    """Base of all: k steps cost k + 1 forwards and k input-backwards; who is fooled leaves.

    The default radii are those of RAMP's table of unseen attacks (Jiang & Singh, NeurIPS 2024).

    Args:
        eps: strength; each attack says of what. Null takes the usual one.
        steps: number of gradient steps.
        step_size: length of a step where the parameters may be in [-1, 1]; null takes 1 /
            sqrt(steps), as Kang et al. do.
        bounds: lowest and highest valid pixel; null takes the run's threat model.
    """

    eps: float = None  # pyright: ignore[reportAssignmentType] - a number once it is made
    steps: int = 100
    step_size: float | None = None
    bounds: Bounds | None = field(default=(0.0, 1.0), kw_only=True)

    name: ClassVar[str] = ""
    usual: ClassVar[float]

    def __post_init__(self) -> None:
        if self.eps is None:
            object.__setattr__(self, "eps", self.usual)
        super().__post_init__()
        check_positive("eps", self.eps, zero=True)
        if self.bounds is not None:
            check_bounds(self.bounds)

    @property
    def label(self) -> str:
        """ "fog-100" for a hundred steps."""
        return f"{self.name}-{self.steps}"

    @property
    def norm(self) -> str:
        """What stands in the place of a norm in tables."""
        return self.name

    @property
    def reach(self) -> float:
        return math.inf

    def under(self, threat: ThreatModel) -> "Drawn":
        """The same attack within the threat's bounds; its radius is its own."""
        return replace(self, bounds=self.bounds or threat.bounds)

    def scene(self, x: Tensor, draw: "Draw") -> Scene:
        """What of the drawing is fixed."""
        return {}

    def start(self, x: Tensor, draw: "Draw") -> Tensor:
        """Where the parameters (B, ...) begin."""
        raise NotImplementedError

    def image(self, x: Tensor, parameters: Tensor, scene: Scene) -> Tensor:
        """The images, of pixels in [0, 1] like `x`; the caller clamps them."""
        raise NotImplementedError

    def stepped(self, parameters: Tensor, grad: Tensor, size: float, scene: Scene) -> Tensor:
        """The parameters after a step: one of the sign, within [-1, 1]."""
        return (parameters + size * grad.sign()).clamp(-1, 1)

    @property
    def length(self) -> float:
        """Of a step."""
        return self.step_size if self.step_size is not None else 1 / math.sqrt(self.steps)

    def search(self, inputs: AttackInputs) -> AttackResult:
        if self.bounds is None:
            raise ArgumentError(describe("bounds", "(low, high)", None, "Call .under(threat)."))
        pixels, (low, high) = check_images(inputs.x, self.bounds), self.bounds
        if pixels.ndim != 4:
            got = f"x of shape {tuple(pixels.shape)}"
            raise ArgumentError(describe("x", f"images (B, C, H, W) for {self.name}", got))
        if len(pixels) == 0:
            nobody = torch.zeros(0, dtype=torch.bool, device=pixels.device)
            return AttackResult(pixels.clone(), Cost(0, 0), nobody)
        limits = box_limits(low, high, pixels.dtype)
        wide = torch.promote_types(pixels.dtype, torch.float32)
        x = (pixels.to(wide) - low) / (high - low)
        draw = Draw(inputs.ids, inputs.generator, x)
        scene, parameters = self.scene(x, draw), self.start(x, draw)
        found, y = pixels.clone(), inputs.y
        place = torch.arange(len(x), device=x.device)
        fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        with inputs.gradient() as gradient:
            passes = Passes(gradient)
            for step in range(self.steps + 1):
                goal = Goal("ce", y[place])
                with torch.inference_mode(False), torch.enable_grad():
                    leaf = parameters.clone().requires_grad_(True)
                    with torch.autocast(x.device.type, enabled=False):
                        drawn = self.image(x, leaf, scene).clamp(0, 1) * (high - low) + low
                seen = drawn.detach().to(pixels.dtype).clamp(*limits)
                if step == self.steps:
                    grad, logits = None, passes.evaluate(seen, goal)[1]
                else:
                    grad, _loss, logits = passes.gradient(seen, goal)
                found[place], new = seen, goal.reached(logits)
                fooled[place] = new
                stay = (~new).nonzero()[:, 0]
                if grad is None or len(stay) == 0:
                    break
                with torch.inference_mode(False):
                    ascent = torch.autograd.grad(drawn, leaf, grad.clone().to(wide))[0]
                parameters = self.stepped(leaf.detach(), ascent, self.length, scene)[stay]
                x, place = x[stay], place[stay]
                scene = {name: value[stay] for name, value in scene.items()}
            return AttackResult(found, gradient.cost, fooled)


@dataclass(frozen=True)
class Draw:
    """Uniform numbers of each sample."""

    ids: Tensor
    generator: Generator | None
    like: Tensor

    def __call__(self, *shape: int) -> Tensor:
        """(B, *shape) in (0, 1), other ones at every call."""
        flat = uniform(len(self.ids), math.prod(shape), self.ids, self.generator, self.like)
        return flat.view(-1, *shape).to(self.like.dtype)


@UNSEEN.register("elastic")
@dataclass(frozen=True)
class Elastic(Drawn):
    """Every pixel moves by up to eps pixels along both axes, by a flow that a Gaussian of 3 pixels
    smooths."""

    name = "elastic"
    usual = 0.125

    def start(self, x: Tensor, draw: Draw) -> Tensor:
        return 2 * draw(2, *x.shape[-2:]) - 1

    def image(self, x: Tensor, parameters: Tensor, scene: Scene) -> Tensor:
        height, width = x.shape[-2:]
        bell = gaussian(12, 3.0, x)
        flow = self.eps * blurred(parameters, bell)
        axes = [(2 * torch.arange(n, device=x.device) + 1) / n - 1 for n in (height, width)]
        rows, columns = torch.meshgrid(*axes, indexing="ij")
        grid = torch.stack((columns + 2 * flow[:, 0] / width, rows + 2 * flow[:, 1] / height), -1)
        return functional.grid_sample(
            x, grid.to(x.dtype), padding_mode="border", align_corners=False
        )


@UNSEEN.register("jpeg")
@dataclass(frozen=True)
class JPEG(Drawn):
    """The coefficients of 8 x 8 cosine transforms change by up to eps quantisation steps: YCbCr
    with halved chroma, or luminance alone for grey images.

    What the coefficients' change makes of the pixels is added to the image, so that eps = 0 leaves
    it as it is; the authors' image loses the chroma that the subsampling takes.

    Args:
        quality: of the quantisation tables, 1 to 95, libjpeg's.
    """

    quality: int = 80
    name = "jpeg"
    usual = 0.125

    def start(self, x: Tensor, draw: Draw) -> Tensor:
        """(B, 1 or 6, blocks, 64): of a square of 16 pixels four blocks of luminance, Cb, Cr."""
        if x.shape[1] not in (1, 3):
            raise ArgumentError(describe("x", "1 or 3 channels for jpeg", x.shape[1]))
        across, down = (-(-n // 16) for n in (x.shape[-1], x.shape[-2]))
        return 2 * draw(across * down, 4 if x.shape[1] == 1 else 6, 64) - 1

    def image(self, x: Tensor, parameters: Tensor, scene: Scene) -> Tensor:
        across, down = (-(-n // 16) for n in (x.shape[-1], x.shape[-2]))
        luma, chroma = (t.to(x) for t in quantisation(self.quality))
        basis = cosines().to(x)
        steps = torch.cat([luma.expand(4, 64), chroma.expand(parameters.shape[2] - 4, 64)])
        blocks = (self.eps * parameters * steps).unflatten(-1, (8, 8)) / 255
        blocks = basis.T @ blocks @ basis  # (B, squares, 4 or 6, 8, 8)
        blocks = blocks.unflatten(1, (down, across))
        light = blocks[:, :, :, :4].unflatten(3, (2, 2))  # B, down, across, 2, 2, 8, 8
        light = light.permute(0, 1, 3, 5, 2, 4, 6).reshape(len(x), 1, 16 * down, 16 * across)
        change = light
        if x.shape[1] == 3:
            colour = blocks[:, :, :, 4:].permute(0, 3, 1, 4, 2, 5)
            colour = colour.reshape(len(x), 2, 8 * down, 8 * across)
            blue, red = functional.interpolate(colour, scale_factor=2.0).split(1, 1)
            green = -0.344136 * blue - 0.714136 * red  # of JFIF's conversion to RGB
            change = light + torch.cat([1.402 * red, green, 1.772 * blue], 1)
        return x + change[..., : x.shape[-2], : x.shape[-1]]


@UNSEEN.register("fog")
@dataclass(frozen=True)
class Fog(Drawn):
    """A fractal fog of strength eps: (x + eps fog) m / (m + eps), m the largest pixel of a channel.
    The parameters are what diamond-square adds at each of its scales, halved from one to the next.

    The released code scales the fog by its extremes in the batch, this one by those of each image,
    and it leaves out the factor m, so that images grow brighter at eps = 0.
    """

    name = "fog"
    usual = 12 / 255

    def start(self, x: Tensor, draw: Draw) -> Tensor:
        """(B, count): three grids of 1, 4, 16 ... values."""
        levels = math.ceil(math.log2(max(x.shape[-2:])))
        return 2 * draw(sum(3 * 4**level for level in range(levels))) - 1

    def image(self, x: Tensor, parameters: Tensor, scene: Scene) -> Tensor:
        fog = diamond_square(parameters)[:, None, : x.shape[-2], : x.shape[-1]]
        least, most = fog.amin((2, 3), keepdim=True), fog.amax((2, 3), keepdim=True)
        fog = (fog - least) / (most - least).clamp(min=1e-9)
        brightest = x.amax((2, 3), keepdim=True)
        return (x + self.eps * fog) * (brightest / (brightest + self.eps).clamp(min=1e-9))


@UNSEEN.register("snow")
@dataclass(frozen=True)
class Snow(Drawn):
    """Flakes of strength eps: seven grids of intensities in [0, 1], one flake every four pixels,
    drawn as seven short streaks, over a paler image. Of 8 x 8 flakes the mean is at most `budget`.

    Args:
        budget: the most snow in a region.
    """

    budget: float = 0.2
    name = "snow"
    usual = 0.5

    def scene(self, x: Tensor, draw: Draw) -> Scene:
        """Streaks (B, 7, 13, 13): angle, length and width of each, all of a sample one way."""
        angle, length, wide = (draw(7)[..., None, None] for _ in range(3))
        way = torch.where(draw(1) < 0.5, 1.0, -1.0)[..., None, None]
        angle = (math.pi / 4 + (angle - 0.5) * math.pi / 6) * way
        length = 2 + 4 * length
        half = torch.where(wide < 0.6, 0.5, torch.where(wide < 0.9, 1.5, 2.5))
        at = torch.arange(-6, 7, device=x.device, dtype=x.dtype)
        rows, columns = at[:, None], at[None, :]
        along = columns * angle.cos() + rows * angle.sin()
        off = columns * angle.sin() - rows * angle.cos()
        distance = torch.hypot(off, (along.abs() - length).clamp(min=0))
        return {"streaks": (half + 0.5 - distance).clamp(0, 1)}

    def start(self, x: Tensor, draw: Draw) -> Tensor:
        """Few flakes are bright: their logarithm is uniform."""
        height, width = (-(-n // 4) for n in x.shape[-2:])
        flakes = (-draw(7, height, width) / self.budget).exp()
        return self.stepped(2 * flakes - 1, torch.zeros_like(flakes), 0.0, {})

    def stepped(self, parameters: Tensor, grad: Tensor, size: float, scene: Scene) -> Tensor:
        flakes = ((parameters + size * grad.sign()).clamp(-1, 1) + 1) / 2
        height, width = flakes.shape[-2:]
        padded = functional.pad(flakes, (0, -width % 8, 0, -height % 8))
        mean = functional.avg_pool2d(padded, 8)
        factor = (self.budget / mean.clamp(min=self.budget)).repeat_interleave(8, 2)
        return 2 * flakes * factor.repeat_interleave(8, 3)[..., :height, :width] - 1

    def image(self, x: Tensor, parameters: Tensor, scene: Scene) -> Tensor:
        flakes = ((parameters + 1) / 2).pow(4)
        batch, _, height, width = flakes.shape
        places = [(0, i) for i in range(4)] + [(i, 0) for i in range(1, 4)]  # of 4 x 4 pixels
        grids = []
        for number, (row, col) in enumerate(places):
            spot = torch.zeros(4, 4, device=x.device, dtype=x.dtype)
            spot[row, col] = 1
            grids.append(torch.kron(flakes[:, number].reshape(-1, width), spot))
        sky = torch.stack([grid.view(batch, 4 * height, 4 * width) for grid in grids], 1)
        snow = functional.conv2d(  # each sample with streaks of its own
            sky.flatten(0, 1)[None], scene["streaks"], padding=6, groups=batch
        ).transpose(0, 1)
        snow = snow[..., : x.shape[-2], : x.shape[-1]]
        share = [0.2126, 0.7152, 0.0722] if x.shape[1] == 3 else [1 / x.shape[1]] * x.shape[1]
        grey = (x * x.new_tensor(share)[:, None, None]).sum(1, keepdim=True)
        pale = 0.75 * x + 0.25 * torch.maximum(x, 1.5 * grey + 0.5)
        return pale + self.eps * snow


@UNSEEN.register("gabor")
@dataclass(frozen=True)
class Gabor(Drawn):
    """Gabor noise of strength eps: a kernel of each sample at a fourteenth of all pixels, with
    weights in [-1, 1], the noise scaled to [0, 1].

    The released code optimises the other thirteen fourteenths.
    """

    name = "gabor"
    usual = 60 / 255

    def scene(self, x: Tensor, draw: Draw) -> Scene:
        """Kernels (B, 23, 23) of one to ten sides, and the places (B, H, W)."""
        sigma, waves, angle, sides = draw(4)[..., None, None, None].unbind(1)
        at = torch.linspace(-0.5, 0.5, 23, device=x.device, dtype=x.dtype)
        number = torch.arange(10, device=x.device)[:, None, None]  # of a side, in front of y, x
        sides = (10 * sides).floor().clamp(max=9) + 1
        turn = math.pi * (angle + number / sides)
        along = at[None, :] * turn.cos() + at[:, None] * turn.sin()
        bell = torch.exp(-(at[:, None] ** 2 + at[None, :] ** 2) / 2 / (0.1 + 0.3 * sigma) ** 2)
        wave = torch.cos(2 * math.pi * (3 + (23 / 4 - 3) * waves) * along)
        kernel = (bell * wave * (number < sides)).sum(1)
        return {"kernels": kernel, "places": draw(*x.shape[-2:]) < 1 / 14}

    def start(self, x: Tensor, draw: Draw) -> Tensor:
        return 2 * draw(*x.shape[-2:]) - 1

    def image(self, x: Tensor, parameters: Tensor, scene: Scene) -> Tensor:
        weights = (parameters * scene["places"])[None]
        noise = functional.conv2d(
            weights, scene["kernels"][:, None], padding=11, groups=len(x)
        ).transpose(0, 1)
        spread = noise.detach().square().mean((2, 3), keepdim=True).sqrt()
        noise = noise / spread.clamp(min=1e-9)
        least = noise.detach().amin((2, 3), keepdim=True)
        most = noise.detach().amax((2, 3), keepdim=True)
        return x + self.eps * (noise - least) / (most - least).clamp(min=1e-9)


@UNSEEN.register("l0")
@dataclass(frozen=True)
class SparsePGD(Drawn):
    """All channels of at most eps pixels change as they like: sparse PGD.

    The change is a magnitude for every pixel times a mask of the eps pixels of largest score. Both
    ascend: the magnitude by the sign of its gradient, which with `unprojected` reaches the pixels
    outside of the mask too, the score by its normalised gradient. Who has kept one mask for three
    steps draws new scores.

    Args:
        eps: number of pixels.
        step_size: of the magnitudes, and in multiples of sqrt(H W) of the scores; null takes the
            paper's 0.25.
        unprojected: the paper's second form; its ensemble has both.
    """

    unprojected: bool = True
    name = "l0"
    usual = 9

    @property
    def length(self) -> float:
        return self.step_size if self.step_size is not None else 0.25

    def scene(self, x: Tensor, draw: Draw) -> Scene:
        """Eight maps of new scores, which are taken in turn, and who has waited for how long."""
        zeros = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        scores = torch.special.ndtri(draw(8, *x.shape[-2:]))
        return {"x": x, "scores": scores, "taken": zeros, "waited": zeros}

    def start(self, x: Tensor, draw: Draw) -> Tensor:
        """(B, 1 + C, H, W): scores and magnitudes."""
        score = torch.special.ndtri(draw(1, *x.shape[-2:]))
        return torch.cat([score, draw(*x.shape[1:]) - x], 1)

    def mask(self, score: Tensor) -> Tensor:
        """Which pixels (B, 1, H, W) change."""
        flat = score.flatten(1)
        chosen = flat.topk(min(int(self.eps), flat.shape[1]), 1).indices
        return torch.zeros_like(flat).scatter(1, chosen, 1.0).view_as(score)

    def image(self, x: Tensor, parameters: Tensor, scene: Scene) -> Tensor:
        """The mask's gradient is that of the scores' sigmoid."""
        score, change = parameters.split((1, x.shape[1]), 1)
        soft, mask = score.sigmoid(), self.mask(score.detach())
        through = soft + (mask - soft).detach()
        if not self.unprojected:
            return x + change * through
        fixed = change.detach()
        return x + fixed * through + (change - fixed) * soft.detach()

    def stepped(self, parameters: Tensor, grad: Tensor, size: float, scene: Scene) -> Tensor:
        x, shape = scene["x"], parameters.shape
        score, change = parameters.split((1, x.shape[1]), 1)
        up, along = grad.split((1, x.shape[1]), 1)
        change = torch.minimum(torch.maximum(change + size * along.sign(), -x), 1 - x)
        length = up.flatten(1).norm(dim=1).clamp(min=torch.finfo(up.dtype).tiny)
        after = score + size * math.sqrt(shape[-2] * shape[-1]) * up / column(length, up)
        still = (self.mask(after) == self.mask(score)).flatten(1).all(1)
        waited = torch.where(still, scene["waited"] + 1, 0)
        anew = waited >= 3
        fresh = scene["scores"][torch.arange(len(x), device=x.device), scene["taken"] % 8]
        scene["waited"], scene["taken"] = torch.where(anew, 0, waited), scene["taken"] + anew
        return torch.cat([torch.where(column(anew, x), fresh[:, None], after), change], 1)


def gaussian(radius: int, sigma: float, like: Tensor) -> Tensor:
    """Weights (2 radius + 1,) of sum 1."""
    at = torch.arange(-radius, radius + 1, device=like.device, dtype=like.dtype)
    bell = torch.exp(-(at**2) / (2 * sigma**2))
    return bell / bell.sum()


def blurred(maps: Tensor, bell: Tensor) -> Tensor:
    """Maps (B, C, H, W) convolved with `bell` along both axes, zeros around."""
    for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
        kernel = bell.view(shape).expand(maps.shape[1], 1, *bell.view(shape).shape[2:])
        maps = functional.conv2d(maps, kernel, padding="same", groups=maps.shape[1])
    return maps


@cache
def quantisation(quality: int) -> tuple[Tensor, Tensor]:
    """JPEG's tables (64,) for luminance and chroma, in rows."""
    from PIL import Image  # the package itself loads with torch alone

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "jpeg", quality=quality)
    tables = Image.open(buffer).quantization  # pyright: ignore[reportAttributeAccessIssue]
    return torch.tensor(tables[0]), torch.tensor(tables[1])


@cache
def cosines() -> Tensor:
    """The orthonormal cosine transform (8, 8): rows are frequencies."""
    place, wave = torch.arange(8.0).double(), torch.arange(8.0).double()[:, None]
    basis = torch.cos(math.pi * (2 * place + 1) * wave / 16) / 2
    basis[0] /= math.sqrt(2)
    return basis


def diamond_square(values: Tensor) -> Tensor:
    """Fractal maps (B, 2^n, 2^n) that repeat at the edges, from `values` (B, 4^n - 1): of each
    scale what is added to the middles of the squares, then to those of rows and of columns."""
    grid = values.new_zeros(len(values), 1, 1)
    weight, at = 1.0, 0
    while at < values.shape[1]:
        side = grid.shape[1]
        part = values[:, at : at + 3 * side**2].view(-1, 3, side, side)
        at += 3 * side**2
        below, right = grid.roll(-1, 1), grid.roll(-1, 2)
        middle = (grid + below + right + below.roll(-1, 2)) / 4 + weight * part[:, 0]
        over, left = middle.roll(1, 1), middle.roll(1, 2)
        row = (grid + right + middle + over) / 4 + weight * part[:, 1]
        col = (grid + below + middle + left) / 4 + weight * part[:, 2]
        upper, lower = torch.stack((grid, row), -1), torch.stack((col, middle), -1)
        grid = torch.stack((upper, lower), 2).reshape(-1, 2 * side, 2 * side)
        weight /= 2
    return grid
